//! The log over a backend whose every write waits for a word.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll, Waker},
    thread::yield_now,
};

use bytes::Bytes;

use futures_util::future::BoxFuture;

use super::{high_water::HighWaterMark, reader::Reader, *};
use crate::{
    AppendError, EventStore as _, NewRecord, StoreError, StoreErrorKind,
    contract::fact,
    disk_space::DiskSpace,
    error::Damage,
    kv::{Entry, Found, KvBackend, KvError},
};

/// A backend in memory whose every write waits for a word: `true` lets it through, `false` fails
/// it as a failed sync would, after the values became visible.
#[derive(Debug)]
struct Gated {
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    puts: Mutex<Vec<usize>>,
    gate: Mutex<mpsc::Receiver<bool>>,
}

impl KvBackend for Gated {
    fn put(&self, entries: Vec<Entry>) -> Result<(), KvError> {
        self.puts.lock().unwrap().push(entries.len());
        self.map.lock().unwrap().extend(entries);
        if self.gate.lock().unwrap().recv().unwrap() {
            return Ok(());
        }
        Err(KvError::Unavailable(Arc::new(std::io::Error::other("the sync failed"))))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.map.lock().unwrap().get(key).map(|value| value.clone().into()))
    }

    fn last_in(&self, keys: RangeInclusive<&[u8]>) -> Result<Option<Found>, KvError> {
        let map = self.map.lock().unwrap();
        let bounds = (keys.start().to_vec(), keys.end().to_vec());
        let found = map.range(bounds.0..=bounds.1).next_back();
        Ok(found.map(|(key, value)| (key.clone().into(), value.clone().into())))
    }

    fn first_in(&self, keys: RangeInclusive<&[u8]>, limit: usize) -> Result<Vec<Found>, KvError> {
        let map = self.map.lock().unwrap();
        let bounds = (keys.start().to_vec(), keys.end().to_vec());
        let found = map.range(bounds.0..=bounds.1).take(limit);
        Ok(found.map(|(key, value)| (key.clone().into(), value.clone().into())).collect())
    }
}

struct Rig {
    log: Option<Log>,
    kv: Arc<Gated>,
    gate: mpsc::Sender<bool>,
    directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let (gate, gated) = mpsc::channel();
        let (map, puts, gated) = (Mutex::default(), Mutex::default(), Mutex::new(gated));
        let kv = Arc::new(Gated { map, puts, gate: gated });
        let directory = tempfile::tempdir().unwrap();
        let mut rig = Self { log: None, kv, gate, directory };
        rig.reopen().unwrap();
        rig
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.log = None;
        let high_water = self.directory.path().join("high-water");
        let kv: Arc<dyn KvBackend> = Arc::<Gated>::clone(&self.kv);
        self.log =
            Some(Log::open(kv, &high_water, DiskSpace::of(self.directory.path()), Arc::new(()))?);
        Ok(())
    }

    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    /// Waits until the backend has been asked to write `count` times.
    fn until_puts(&self, count: usize) {
        while self.kv.puts.lock().unwrap().len() < count {
            yield_now();
        }
    }
}

fn pending<T>(future: &mut BoxFuture<'_, T>) -> bool {
    matches!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

#[tokio::test]
async fn nothing_is_acknowledged_or_seen_before_the_backend_says_durable() {
    let rig = Rig::new();
    let mut append = rig.log().append("run/a", 0, vec![fact("1")]);
    rig.until_puts(1);

    assert!(pending(&mut append));
    assert_eq!(*rig.log().watch().borrow(), 0);
    assert!(rig.log().read_all(0, 10).await.unwrap().is_empty());
    assert!(rig.log().read("run/a", 0, 10).await.unwrap().is_empty());

    rig.gate.send(true).unwrap();
    append.await.unwrap();
    assert_eq!(*rig.log().watch().borrow(), 1);
    assert_eq!(rig.log().read("run/a", 0, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_newest_records_are_read_without_the_backend() {
    // given: three commits, and a backend that has nothing to answer with
    let rig = Rig::new();
    for version in 0..3 {
        rig.gate.send(true).unwrap();
        rig.log().append("run/a", version, vec![fact("1")]).await.unwrap();
    }
    let all = rig.log().read_all(0, 10).await.unwrap();
    let map = std::mem::take(&mut *rig.kv.map.lock().unwrap());

    // when, then: a follower gets what is new, and that there is no more
    assert_eq!(rig.log().read("run/a", 0, 10).await.unwrap(), all);
    assert_eq!(rig.log().read("run/a", 1, 1).await.unwrap(), all[1..2]);
    assert_eq!(rig.log().read("run/a", 3, 10).await.unwrap(), []);
    *rig.kv.map.lock().unwrap() = map;
}

#[tokio::test]
async fn what_waits_while_the_disk_is_busy_is_one_commit() {
    let rig = Rig::new();
    let first = rig.log().append("run/a", 0, vec![fact("1")]);
    rig.until_puts(1);
    let waiting: Vec<_> = (0..50)
        .map(|n| rig.log().append(&format!("run/{n}"), 0, vec![fact("1"), fact("2")]))
        .collect();
    let late = rig.log().append("run/7", 0, vec![fact("late")]);
    let next = rig.log().append("run/7", 2, vec![fact("3")]);

    rig.gate.send(true).unwrap();
    rig.gate.send(true).unwrap();

    first.await.unwrap();
    for append in waiting {
        append.await.unwrap();
    }
    let conflict = late.await.unwrap_err();
    assert!(matches!(conflict, AppendError::Conflict { expected: 0, actual: 2, .. }));
    assert_eq!(next.await.unwrap().version, 3);
    assert_eq!(*rig.kv.puts.lock().unwrap(), [1, 1], "one key each");
}

#[tokio::test]
async fn after_a_failed_commit_the_store_stops_and_never_tries_again() {
    let rig = Rig::new();
    let first = rig.log().append("run/a", 0, vec![fact("1")]);
    rig.until_puts(1);
    let second = rig.log().append("run/b", 0, vec![fact("1")]);

    rig.gate.send(false).unwrap();

    assert!(matches!(first.await, Err(AppendError::Store(StoreError::Stopped { .. }))));
    assert!(matches!(second.await, Err(AppendError::Store(StoreError::Stopped { .. }))));
    let later = rig.log().append("run/c", 0, vec![fact("1")]).await.unwrap_err();
    assert!(matches!(later, AppendError::Store(StoreError::Stopped { .. })), "{later}");
    let cause = std::error::Error::source(&later).unwrap().source().unwrap().to_string();
    assert_eq!(cause, "the sync failed");
    assert_eq!(rig.log().read_all(0, 1).await.unwrap_err().kind(), StoreErrorKind::Unavailable);
    assert_eq!(
        rig.log().read("run/a", 0, 1).await.unwrap_err().kind(),
        StoreErrorKind::Unavailable
    );
    assert_eq!(*rig.log().watch().borrow(), 0);
    assert_eq!(rig.kv.puts.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn more_than_may_wait_is_refused_as_busy() {
    let rig = Rig::new();
    let first = rig.log().append("run/a", 0, vec![fact("1")]);
    rig.until_puts(1);
    let large = || vec![NewRecord::new("large", vec![0; 60_000]); 500];
    let mut waiting: Vec<_> =
        (0..2).map(|n| rig.log().append(&format!("run/{n}"), 0, large())).collect();
    assert!(waiting.iter_mut().all(pending));

    let error = rig.log().append("run/z", 0, large()).await.unwrap_err();

    assert!(matches!(error, AppendError::Busy { .. }), "{error}");
    drop(waiting);
    for _ in 0..100 {
        rig.gate.send(true).unwrap();
    }
    first.await.unwrap();
    // What was queued is written, even if no caller waits for it any more.
    let mut tail = rig.log().watch();
    tail.wait_for(|tail| *tail == 1001).await.unwrap();
}

/// More streams than the writer remembers the ends of, and none of them durable yet.
#[tokio::test]
async fn of_two_appends_to_a_stream_one_loses_however_many_streams_lie_between() {
    let rig = Rig::new();
    let first = rig.log().append("run/a", 0, vec![fact("1")]);
    rig.until_puts(1);
    let small = || vec![NewRecord::new("", "")];
    let early = rig.log().append("run/b", 0, small());
    let between: Vec<_> =
        (0..70_000).map(|n| rig.log().append(&format!("s/{n}"), 0, small())).collect();
    let late = rig.log().append("run/b", 0, small());

    for _ in 0..100 {
        rig.gate.send(true).unwrap();
    }

    first.await.unwrap();
    assert_eq!(early.await.unwrap().version, 1);
    assert!(matches!(late.await, Err(AppendError::Conflict { .. })));
    drop(between);
}

/// Three hundred small commits to eight streams, so that the index is written in between.
async fn filled() -> Rig {
    let rig = Rig::new();
    for n in 0..300_u64 {
        rig.gate.send(true).unwrap();
        let stream = format!("run/{}", n % 8);
        rig.log().append(&stream, n / 8, vec![fact(&n.to_string())]).await.unwrap();
    }
    rig
}

#[tokio::test]
async fn a_shortened_log_is_a_rollback_and_another_one_is_damage() {
    let mut rig = filled().await;
    rig.log = None;
    let last = index::block_key(300).to_vec();
    let removed = rig.kv.map.lock().unwrap().remove(&last).unwrap();
    let error = rig.reopen().unwrap_err();
    assert!(matches!(error, StoreError::Rollback { high_water: 300, tail: 299 }), "{error}");

    // A sound block with another record in the place of the last.
    let kv: Arc<dyn KvBackend> = Arc::<Gated>::clone(&rig.kv);
    let tail = Reader::new(kv).last_block().unwrap().unwrap().tail();
    let mut other = block::Filling::after(&tail);
    other.push("run/3", 38, "forged", b"");
    rig.kv.map.lock().unwrap().insert(last.clone(), other.seal(1));
    let error = rig.reopen().unwrap_err();
    assert!(
        matches!(error, StoreError::Damaged { position: 300, what: Damage::HighWaterDiffers }),
        "{error}"
    );

    rig.kv.map.lock().unwrap().insert(last, removed);
    rig.reopen().unwrap();
}

#[tokio::test]
async fn a_missing_mark_is_written_again() {
    let mut rig = filled().await;
    rig.log = None;
    let mark = rig.directory.path().join("high-water");
    std::fs::remove_file(&mark).unwrap();

    rig.reopen().unwrap();

    assert_eq!(HighWaterMark::read(&mark).unwrap().unwrap().position, 300);
}

#[tokio::test]
async fn a_hole_stops_every_reader_at_its_position() {
    let mut rig = filled().await;
    rig.log = None;
    rig.kv.map.lock().unwrap().remove(index::block_key(20).as_slice());
    rig.reopen().unwrap_or_else(|error| assert_eq!(error.kind(), StoreErrorKind::LogDamaged));
    let Some(log) = &rig.log else { return };

    for (after, limit) in [(0, 1000), (19, 1), (10, 50)] {
        let error = log.read_all(after, limit).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { position: 20, .. }), "{error}");
    }
    assert_eq!(log.read_all(0, 19).await.unwrap().len(), 19);
    let error = log.read("run/3", 0, 100).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { position: 20, .. }), "{error}");
    assert_eq!(crate::verify(log, |_| {}).await.unwrap_err().kind(), StoreErrorKind::LogDamaged);
}

#[tokio::test]
async fn any_lost_entry_of_the_index_is_noticed_by_the_audit() {
    let mut rig = filled().await;
    rig.log = None;
    let before = rig.kv.map.lock().unwrap().clone();
    let entries: Vec<_> = before.keys().filter(|key| key[0] == b's').cloned().collect();
    assert!(!entries.is_empty(), "the index was written");
    let last = before.keys().rfind(|key| key[0] == b'l').unwrap().clone();

    for key in entries.iter().chain([&last]) {
        rig.kv.map.lock().unwrap().remove(key);
        let verdict = match rig.reopen() {
            Ok(()) => crate::verify(rig.log(), |_| {}).await.map(drop),
            Err(error) => Err(error),
        };
        assert!(verdict.is_err(), "{key:?}");
        rig.log = None;
        *rig.kv.map.lock().unwrap() = before.clone();
    }
    rig.reopen().unwrap();
    assert_eq!(crate::verify(rig.log(), |_| {}).await.unwrap().records, 300);
}
