//! What every backend must do, written once as tests.
//!
//! A backend's whole test module is one line of [`crate::event_store_contract!`]. Where a rule was
//! nearly missed by the others, its doc line says how.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use futures_util::future::join_all;
use proptest::{
    collection::vec,
    prelude::{Strategy as _, any},
    test_runner::{Config, TestRunner},
};

use crate::{
    AppendError, EventStore, NewRecord, READ_BYTES_MAX, RECORD_BYTES_MAX, Record, STREAM_BYTES_MAX,
    verify,
};

/// A store under test.
pub type Store = Arc<dyn EventStore>;

/// A record whose kind and payload are `word`.
pub fn fact(word: &str) -> NewRecord {
    NewRecord::new(word, word.as_bytes().to_vec())
}

fn facts(count: usize) -> Vec<NewRecord> {
    (0..count).map(|n| fact(&n.to_string())).collect()
}

fn kinds(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| &*record.kind).collect()
}

/// Runs `test` on a runtime of its own, with a directory of its own.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(&Path) -> F) {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(test(directory.path()));
}

/// All records, page by page, of the log or of one stream.
pub async fn everything(store: &dyn EventStore, stream: Option<&str>, limit: usize) -> Vec<Record> {
    let mut all: Vec<Record> = Vec::new();
    loop {
        let page = match stream {
            Some(stream) => {
                let after = all.last().map_or(0, |record| record.version);
                store.read(stream, after, limit).await
            }
            None => {
                let after = all.last().map_or(0, |record| record.position);
                store.read_all(after, limit).await
            }
        };
        let page = page.expect("a page");
        assert!(page.len() <= limit, "{} of at most {limit}", page.len());
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// A writer that lost the race gets an error, and writes nothing.
pub async fn a_stale_version_is_refused_and_leaves_no_trace(store: Store) {
    store.append("run/a", 0, vec![fact("1")]).await.expect("first append");

    for wrong in [0, 2, u64::MAX] {
        let error = store.append("run/a", wrong, vec![fact("late")]).await.expect_err("stale");
        assert!(
            matches!(&error, AppendError::Conflict { expected, actual: 1, .. } if *expected == wrong),
            "{error}"
        );
    }

    assert_eq!(kinds(&store.read_all(0, 10).await.expect("read")), ["1"]);
    assert_eq!(kinds(&store.read("run/a", 0, 10).await.expect("read")), ["1"]);
    assert_eq!(*store.watch().borrow(), 1);
    store.append("run/a", 1, vec![fact("2")]).await.expect("the right version");
}

/// Order holds past 255, where keys of the wrong byte order begin to shuffle.
pub async fn order_holds_past_one_byte(store: Store) {
    for n in 0..300 {
        store.append("run/a", n, vec![fact(&n.to_string())]).await.expect("append");
    }

    let expected: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    assert_eq!(kinds(&store.read("run/a", 0, 1000).await.expect("read")), expected);
    assert_eq!(kinds(&store.read_all(0, 1000).await.expect("read")), expected);
}

/// Of eight writers that saw the same version, one succeeds and seven get an error.
pub async fn of_racing_writers_exactly_one_wins(store: Store) {
    let writers = (0..8).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.append("run/a", 0, vec![fact(&n.to_string())]).await })
    });
    let results: Vec<_> =
        join_all(writers).await.into_iter().map(|result| result.expect("no panic")).collect();

    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(store.read_all(0, 10).await.expect("read").len(), 1);
}

/// Many records are one append: side by side, or none of them.
pub async fn an_append_is_all_or_none(store: Store) {
    let first = store.append("run/a", 0, facts(3)).await.expect("append");
    assert_eq!((first.first, first.last, first.version), (1, 3, 3));

    let mut records = facts(3);
    records.push(NewRecord::new("large", vec![0; RECORD_BYTES_MAX + 1]));
    let error = store.append("run/a", 3, records).await.expect_err("too large");
    assert!(matches!(error, AppendError::TooLarge { .. }), "{error}");
    store.append("run/a", 2, facts(3)).await.expect_err("stale");

    assert_eq!(everything(store.as_ref(), None, 10).await.len(), 3);
    let next = store.append("run/b", 0, facts(2)).await.expect("append");
    assert_eq!((next.first, next.last, next.version), (4, 5, 2));
}

/// An unknown stream is an empty one, and so is what lies behind the end.
pub async fn an_unknown_stream_is_empty(store: Store) {
    assert!(store.read("run/none", 0, 10).await.expect("read").is_empty());
    assert!(store.read_all(0, 10).await.expect("read").is_empty());
    assert_eq!(*store.watch().borrow(), 0);

    store.append("run/a", 0, facts(2)).await.expect("append");

    assert!(store.read("run/a", 2, 10).await.expect("read").is_empty());
    assert!(store.read("run/a", u64::MAX, 10).await.expect("read").is_empty());
    assert!(store.read_all(2, 10).await.expect("read").is_empty());
    assert!(store.read_all(u64::MAX, 10).await.expect("read").is_empty());
    assert!(store.read_all(0, 0).await.expect("read").is_empty());
    assert!(store.read("run/a", 0, 0).await.expect("read").is_empty());
}

/// Pages of every size make up the same whole.
pub async fn pages_of_any_size_join_without_a_gap(store: Store) {
    for n in 0..60 {
        let stream = format!("run/{}", n % 3);
        store.append(&stream, n / 3 * 5, facts(5)).await.expect("append");
    }

    let all = everything(store.as_ref(), None, 1000).await;
    let one = everything(store.as_ref(), Some("run/1"), 1000).await;
    assert_eq!((all.len(), one.len()), (300, 100));
    for limit in [1, 2, 7, 64, 299] {
        assert_eq!(everything(store.as_ref(), None, limit).await, all, "limit {limit}");
        assert_eq!(everything(store.as_ref(), Some("run/1"), limit).await, one, "limit {limit}");
    }
}

/// A page is bounded by bytes as well as by `limit`, but is never empty before the end.
pub async fn a_page_is_bounded_by_bytes(store: Store) {
    let large = NewRecord::new("large", vec![b'x'; RECORD_BYTES_MAX]);
    let count = READ_BYTES_MAX / RECORD_BYTES_MAX + 10;
    store.append("run/a", 0, vec![large; count]).await.expect("append");

    for page in [store.read_all(0, count).await, store.read("run/a", 0, count).await] {
        let page = page.expect("a page");
        let bytes: usize = page.iter().map(|record| record.bytes.len()).sum();
        assert!(bytes <= READ_BYTES_MAX && page.len() < count, "{bytes} bytes");
    }
    assert_eq!(everything(store.as_ref(), None, count).await.len(), count);
    assert_eq!(everything(store.as_ref(), Some("run/a"), count).await.len(), count);
}

/// A reader that sees the tail move, or an append acknowledged, can read up to there.
pub async fn what_is_acknowledged_or_watched_can_be_read(store: Store) {
    let mut watch = store.watch();
    let reader = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let mut seen = 0;
            while seen < 200 {
                watch.changed().await.expect("the store lives");
                let tail = *watch.borrow_and_update();
                assert!(tail > seen, "the tail stepped from {seen} to {tail}");
                let read = store.read_all(tail - 1, 10).await.expect("read");
                assert_eq!(read.first().map(|record| record.position), Some(tail));
                seen = tail;
            }
        }
    });

    for n in 0..100 {
        let appended = store.append("run/a", n * 2, facts(2)).await.expect("append");
        assert!(*store.watch().borrow() >= appended.last);
        let read = store.read("run/a", n * 2, 10).await.expect("read");
        assert_eq!(read.len(), 2);
        let read = store.read_all(appended.first - 1, 10).await.expect("read");
        assert_eq!(read.len(), 2);
    }

    reader.await.expect("the reader");
}

/// Streams that are written side by side share one log without a gap.
pub async fn interleaved_streams_share_one_log_without_gaps(store: Store) {
    let writers = (0..16).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for n in 0..50 {
                let stream = format!("run/{writer}");
                store.append(&stream, n, vec![fact(&n.to_string())]).await.expect("append");
            }
        })
    });
    for writer in join_all(writers).await {
        writer.expect("no panic");
    }

    let all = everything(store.as_ref(), None, 100).await;
    let positions: Vec<u64> = all.iter().map(|record| record.position).collect();
    assert_eq!(positions, (1..=800).collect::<Vec<u64>>());
    for writer in 0..16 {
        let stream = format!("run/{writer}");
        let own = everything(store.as_ref(), Some(&stream), 17).await;
        let from_all: Vec<Record> =
            all.iter().filter(|record| *record.stream == *stream).cloned().collect();
        assert_eq!(own, from_all);
        assert_eq!(own.last().map(|record| record.version), Some(50));
    }
}

/// An append is queued when it is called, even if its future is not polled.
pub async fn appends_queue_in_the_order_of_their_calls_unpolled(store: Store) {
    let queued: Vec<_> =
        (0..100_u64).map(|n| store.append("run/a", n, vec![fact(&n.to_string())])).collect();
    let forgotten = store.append("run/a", 100, vec![fact("100")]);
    drop(forgotten);
    let last = store.append("run/a", 101, vec![fact("101")]).await.expect("after the others");

    assert_eq!((last.first, last.version), (102, 102));
    for (n, append) in queued.into_iter().enumerate().rev() {
        assert_eq!(append.await.expect("in order").first, n as u64 + 1);
    }
}

/// Names are bytes to the store: one that begins like another, or looks like a key, is its own.
pub async fn odd_names_are_kept_apart(store: Store) {
    let long = "l".repeat(STREAM_BYTES_MAX);
    let names = [
        "",
        "a",
        "ab",
        "run/a",
        "run/ab",
        "run/a/",
        "run/a/b",
        "run:a",
        "/",
        "//",
        "l",
        "s",
        "ü",
        "u\u{308}",
        "日本語",
        "🚢",
        "a\0b",
        "a\0",
        "\0",
        "\u{10ffff}",
        " ",
        "a b",
        "run/\u{7f}",
        &long,
    ];
    for round in 0..3 {
        for (n, name) in names.iter().enumerate() {
            let kind = format!("{n}-{round}");
            store.append(name, round, vec![fact(&kind)]).await.expect("append");
        }
    }

    for (n, name) in names.iter().enumerate() {
        let own = store.read(name, 0, 100).await.expect("read");
        assert_eq!(kinds(&own), [0, 1, 2].map(|round| format!("{n}-{round}")), "{name:?}");
        assert!(own.iter().all(|record| *record.stream == **name));
    }
    let longer = "l".repeat(STREAM_BYTES_MAX + 1);
    let error = store.append(&longer, 0, facts(1)).await.expect_err("too long");
    assert!(matches!(error, AppendError::TooLarge { .. }), "{error}");
    for bytes in [STREAM_BYTES_MAX + 1, 70_000] {
        let read = store.read(&"l".repeat(bytes), 0, 100).await.expect("a name like any other");
        assert_eq!(read, [], "{bytes}");
    }
}

/// An append without records is refused: it would be acknowledged for nothing.
pub async fn an_empty_append_is_refused(store: Store) {
    let error = store.append("run/a", 0, Vec::new()).await.expect_err("empty");

    assert!(matches!(error, AppendError::Empty), "{error}");
    assert_eq!(*store.watch().borrow(), 0);
}

/// One append may hold what a large migration plans at once.
pub async fn a_large_append_works(store: Store) {
    let payload = vec![b'p'; 300];
    let records = (0..20_000).map(|_| NewRecord::new("job_planned", payload.clone())).collect();

    let appended = store.append("run/a", 0, records).await.expect("append");
    store.append("run/a", 20_000, facts(1)).await.expect("one more");

    assert_eq!((appended.first, appended.last), (1, 20_000));
    assert_eq!(everything(store.as_ref(), None, 5000).await.len(), 20_001);
    assert_eq!(everything(store.as_ref(), Some("run/a"), 5000).await.len(), 20_001);
    let read = store.read("run/a", 19_999, 10).await.expect("read");
    assert_eq!(kinds(&read), ["job_planned", "0"]);
}

/// Payloads of every awkward size come back as they were, and the chain of hashes holds.
pub async fn the_chain_of_hashes_covers_every_record(store: Store) {
    let sizes = [0, 1, 255, 256, 4095, 48 * 1024 - 1, 48 * 1024, RECORD_BYTES_MAX];
    for (n, size) in sizes.into_iter().enumerate() {
        let record = NewRecord::new("sized", vec![u8::try_from(n).expect("few"); size]);
        store.append("run/a", n as u64, vec![record]).await.expect("append");
    }

    let read = everything(store.as_ref(), None, 3).await;
    for (n, record) in read.iter().enumerate() {
        assert_eq!(record.bytes.len(), sizes[n]);
        assert!(record.bytes.iter().all(|&byte| usize::from(byte) == n));
    }
    let mut seen = 0;
    let verified = verify(store.as_ref(), |position| seen = position).await.expect("sound");
    assert_eq!((verified.records, seen), (8, 8));
    assert_eq!(Some(verified.hash), read.last().map(|record| record.hash));
}

/// What was acknowledged is there after closing and opening again, and writing continues.
pub async fn reopening_keeps_everything(open: impl Fn() -> Store) {
    let mut before: Vec<Record> = Vec::new();
    for round in 0..4 {
        let store = open();
        assert_eq!(*store.watch().borrow(), before.len() as u64, "round {round}");
        assert_eq!(everything(store.as_ref(), None, 100).await, before, "round {round}");
        for n in 0..150_u64 {
            let stream = format!("run/{}", n % 50);
            let version = round * 3 + n / 50;
            store.append(&stream, version, vec![fact("x")]).await.expect("append");
        }
        before = everything(store.as_ref(), None, 100).await;
        assert_eq!(before.len() as u64, (round + 1) * 150);
    }
    let store = open();
    for n in 0..50 {
        let stream = format!("run/{n}");
        assert_eq!(everything(store.as_ref(), Some(&stream), 5).await.len(), 12);
    }
    verify(store.as_ref(), |_| {}).await.expect("sound");
}

/// What was queued when the store is dropped is written, not forgotten.
pub async fn dropping_the_store_writes_what_waits(open: impl Fn() -> Store) {
    let store = open();
    let queued: Vec<_> = (0..50).map(|n| store.append("run/a", n, facts(1))).collect();
    drop(store);
    for append in queued {
        append.await.expect("written");
    }

    assert_eq!(everything(open().as_ref(), Some("run/a"), 100).await.len(), 50);
}

/// A step of the model test.
#[derive(Clone, Debug)]
enum Step {
    Append { stream: usize, records: usize, stale: bool },
    ReadStream { stream: usize, after: u64, limit: usize },
    ReadAll { after: u64, limit: usize },
}

/// Any sequence of appends and reads does what a list of records would do. `open` is called with a
/// fresh directory for every case.
pub fn any_sequence_matches_the_model(open: impl Fn(&Path) -> Store) {
    let step = (any::<[u8; 3]>(), 0..4_u8).prop_map(|([a, b, c], which)| match which {
        0 | 1 => Step::Append {
            stream: usize::from(a % 5),
            records: usize::from(b % 8) + 1,
            stale: c < 40,
        },
        2 => Step::ReadStream {
            stream: usize::from(a % 5),
            after: u64::from(b % 40),
            limit: usize::from(c % 20),
        },
        _ => Step::ReadAll { after: u64::from(b), limit: usize::from(c) },
    });
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&vec(step, 1..60), |steps| {
        run(|directory| play(open(directory), steps));
        Ok(())
    });
    assert!(result.is_ok(), "{}", result.expect_err("BUG: just seen"));
}

async fn play(store: Store, steps: Vec<Step>) {
    let mut log: Vec<(String, u64, String)> = Vec::new();
    let mut heads: BTreeMap<String, u64> = BTreeMap::new();
    let shape = |records: Vec<Record>| -> Vec<(String, u64, String)> {
        let shape =
            |record: Record| (record.stream.to_string(), record.version, record.kind.to_string());
        records.into_iter().map(shape).collect()
    };
    for step in steps {
        match step {
            Step::Append { stream, records, stale } => {
                let stream = format!("run/{stream}");
                let head = heads.entry(stream.clone()).or_default();
                let expected = *head + u64::from(stale);
                let words: Vec<String> =
                    (0..records).map(|n| format!("{}-{n}", log.len())).collect();
                let new = words.iter().map(|word| fact(word)).collect();
                let result = store.append(&stream, expected, new).await;
                assert_eq!(result.is_err(), stale);
                if !stale {
                    for word in words {
                        *head += 1;
                        log.push((stream.clone(), *head, word));
                    }
                    assert_eq!(result.expect("appended").last, log.len() as u64);
                }
            }
            Step::ReadStream { stream, after, limit } => {
                let stream = format!("run/{stream}");
                let read = store.read(&stream, after, limit).await.expect("read");
                let model =
                    log.iter().filter(|(name, version, _)| *name == stream && *version > after);
                assert_eq!(shape(read), model.take(limit).cloned().collect::<Vec<_>>());
            }
            Step::ReadAll { after, limit } => {
                let read = store.read_all(after, limit).await.expect("read");
                let model = log.iter().skip(usize::try_from(after).expect("small")).take(limit);
                assert_eq!(shape(read), model.cloned().collect::<Vec<_>>());
            }
        }
    }
    verify(store.as_ref(), |_| {}).await.expect("sound");
}

/// Runs the whole contract on a backend, as tests of the module it is called in.
///
/// Takes a closure from a directory to a store; `durable` before it adds the tests that close the
/// store and open the same directory again.
#[macro_export]
macro_rules! event_store_contract {
    (durable |$directory:ident| $open:expr) => {
        $crate::event_store_contract!(|$directory| $open);
        $crate::event_store_contract!(@reopening |$directory| $open;
            reopening_keeps_everything,
            dropping_the_store_writes_what_waits,
        );
    };
    (|$directory:ident| $open:expr) => {
        $crate::event_store_contract!(@each |$directory| $open;
            a_stale_version_is_refused_and_leaves_no_trace,
            order_holds_past_one_byte,
            of_racing_writers_exactly_one_wins,
            an_append_is_all_or_none,
            an_unknown_stream_is_empty,
            pages_of_any_size_join_without_a_gap,
            a_page_is_bounded_by_bytes,
            what_is_acknowledged_or_watched_can_be_read,
            interleaved_streams_share_one_log_without_gaps,
            appends_queue_in_the_order_of_their_calls_unpolled,
            odd_names_are_kept_apart,
            an_empty_append_is_refused,
            a_large_append_works,
            the_chain_of_hashes_covers_every_record,
        );
        #[test]
        fn any_sequence_matches_the_model() {
            $crate::contract::any_sequence_matches_the_model(|$directory| $open);
        }
    };
    (@each |$directory:ident| $open:expr; $($test:ident,)*) => {$(
        #[test]
        fn $test() {
            $crate::contract::run(|$directory| $crate::contract::$test($open));
        }
    )*};
    (@reopening |$directory:ident| $open:expr; $($test:ident,)*) => {$(
        #[test]
        fn $test() {
            $crate::contract::run(|directory| {
                let directory = directory.to_owned();
                $crate::contract::$test(move || {
                    let $directory = directory.as_path();
                    $open
                })
            });
        }
    )*};
}
