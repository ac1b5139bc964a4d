//! Damage to the files underneath: a store comes back with everything, or says by name why not.
//!
//! Never silently fewer. Each case copies a closed store, damages one file of its database at one
//! place, opens it and reads it all, log and streams.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use towpath_storage::{BACKENDS, NewRecord, Record, StoreError, StoreErrorKind, open, verify};

const STREAMS: u64 = 5;
const RECORDS: u64 = 1200;
const CASES: u64 = 60;

/// The schemes of backends whose stores can be opened again.
fn durable_backends() -> impl Iterator<Item = &'static str> {
    BACKENDS.iter().filter(|backend| backend.is_durable()).map(|backend| backend.scheme())
}

/// What was acknowledged.
async fn fill(url: &str) -> Vec<Record> {
    let opened = open(url).unwrap();
    for n in 0..RECORDS {
        let record = NewRecord::new("fact", format!("{n}-{}", "x".repeat(200)));
        let append =
            opened.store.append(&format!("run/{}", n % STREAMS), n / STREAMS, vec![record]);
        // Some alone in their commit, some together.
        if n % 7 == 0 {
            append.await.unwrap();
        }
    }
    let mut tail = opened.store.watch();
    tail.wait_for(|tail| *tail == RECORDS).await.unwrap();
    everything(url, opened).await.unwrap()
}

/// Everything a reader can see of the store, which must agree with itself.
async fn everything(url: &str, opened: towpath_storage::Opened) -> Result<Vec<Record>, StoreError> {
    let mut all: Vec<Record> = Vec::new();
    loop {
        let after = all.last().map_or(0, |record| record.position);
        let page = opened.store.read_all(after, 500).await?;
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    for stream in 0..STREAMS {
        let stream = format!("run/{stream}");
        let of_stream = all.iter().filter(|record| *record.stream == *stream).count();
        let read = opened.store.read(&stream, 0, 10_000).await?;
        assert_eq!(read.len(), of_stream, "`{stream}` of {url} is silently another");
    }
    verify(opened.store.as_ref(), |_| {}).await?;
    Ok(all)
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_of(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// A file of a closed store: where it lies, what was written, and how long it is. Databases
/// reserve zeros behind what they wrote.
struct Kept {
    inside: PathBuf,
    written: Vec<u8>,
    len: u64,
}

/// The files below `root`.
fn keep(root: &Path) -> Vec<Kept> {
    let kept = |path: &PathBuf| {
        let mut written = fs::read(path).unwrap();
        let len = written.len() as u64;
        while written.last_chunk() == Some(&[0; 4096]) {
            written.truncate(written.len() - 4096);
        }
        while written.last() == Some(&0) {
            written.pop();
        }
        Kept { inside: path.strip_prefix(root).unwrap().to_owned(), written, len }
    };
    files_of(root).iter().map(kept).collect()
}

/// Puts the files of a store below `root`.
fn put(kept: &[Kept], root: &Path) {
    for Kept { inside, written, len } in kept {
        let path = root.join(inside);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, written).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(*len).unwrap();
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Truncate,
    FlipBit,
    ZeroPage,
    Delete,
}

fn damage(path: &Path, fault: Fault, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    match fault {
        Fault::Truncate => file.set_len(offset).unwrap(),
        Fault::FlipBit => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << (offset % 8))], offset).unwrap();
        }
        Fault::ZeroPage => {
            let start = offset / 512 * 512;
            let end = (start + 512).min(file.metadata().unwrap().len());
            file.write_all_at(&vec![0; usize::try_from(end - start).unwrap()], start).unwrap();
        }
        Fault::Delete => fs::remove_file(path).unwrap(),
    }
}

/// How the cases of a backend ended: word of the verdict to count.
async fn survey(backend: &str) -> BTreeMap<String, u32> {
    let directory = tempfile::tempdir().unwrap();
    let sound = directory.path().join("sound");
    let acknowledged = fill(&format!("{backend}:{}", sound.display())).await;
    assert_eq!(acknowledged.len() as u64, RECORDS);
    let mut verdicts = BTreeMap::new();
    let kept = keep(&sound);
    let mut cases: Vec<(PathBuf, Fault, u64)> = Vec::new();
    for Kept { inside, written, .. } in kept.iter().filter(|kept| kept.inside.starts_with(backend))
    {
        cases.push((inside.clone(), Fault::Delete, 0));
        let Some(last) = (written.len() as u64).checked_sub(1) else { continue };
        // Large files at many places, half of them in the last eighth, where tails are lost.
        let places = if last > 4096 { CASES } else { CASES / 10 };
        for n in 0..places {
            let offset = if n % 2 == 0 { last * n / places } else { last - last * n / places / 8 };
            for fault in [Fault::Truncate, Fault::FlipBit, Fault::ZeroPage] {
                cases.push((inside.clone(), fault, offset));
            }
        }
    }
    for (n, (file, fault, offset)) in cases.into_iter().enumerate() {
        let target = directory.path().join(format!("case-{n}"));
        put(&kept, &target);
        damage(&target.join(&file), fault, offset);
        let url = format!("{backend}:{}", target.display());
        let verdict = match open(&url) {
            Ok(opened) => everything(&url, opened).await,
            Err(error) => Err(error),
        };
        let word = match verdict {
            Ok(all) => {
                assert_eq!(all, acknowledged, "{fault:?} at {offset} of {}", file.display());
                "everything".to_owned()
            }
            Err(error) => {
                let named = [StoreErrorKind::LogDamaged, StoreErrorKind::LogRollback];
                assert!(named.contains(&error.kind()), "{fault:?} of {}: {error}", file.display());
                format!("{:?}", error.kind())
            }
        };
        if file.to_string_lossy().contains("snap.") {
            assert_eq!(word, "everything", "a snapshot is not the log: {fault:?} at {offset}");
        }
        *verdicts.entry(word).or_default() += 1;
        fs::remove_dir_all(&target).unwrap();
    }
    verdicts
}

#[tokio::test]
async fn a_damaged_sled_gives_everything_or_a_named_error() {
    let verdicts = survey("sled").await;

    assert!(verdicts.keys().any(|word| word == "LogRollback"), "{verdicts:?}");
}

#[cfg(feature = "fjall")]
#[tokio::test]
async fn a_damaged_fjall_gives_everything_or_a_named_error() {
    let verdicts = survey("fjall").await;

    assert!(verdicts.keys().any(|word| word == "LogRollback"), "{verdicts:?}");
}

/// sled writes a snapshot whenever it opens a log that has grown. A kill or a full disk leaves half
/// of it, under a name that sled reads at the next start.
#[tokio::test]
async fn half_a_snapshot_of_sled_keeps_no_store_shut() {
    let directory = tempfile::tempdir().unwrap();
    let sound = directory.path().join("sound");
    let acknowledged = fill(&format!("sled:{}", sound.display())).await;
    let kept = keep(&sound);
    let snapshot = |kept: &&Kept| kept.inside.to_string_lossy().starts_with("sled/snap.");
    let snapshot = kept.iter().find(snapshot).expect("sled wrote a snapshot");
    let newest = format!("{}.generating", snapshot.inside.display());
    let written = snapshot.written.len();
    for (n, bytes) in [0, 1, 13, written / 2, written - 1].into_iter().enumerate() {
        for half in [newest.as_str(), "sled/snap.FFFFFFFFFFFFFFFF.generating"] {
            let target = directory.path().join(format!("case-{n}-{}", half.len()));
            put(&kept, &target);
            fs::write(target.join(half), &snapshot.written[..bytes]).unwrap();

            let url = format!("sled:{}", target.display());
            let all = everything(&url, open(&url).unwrap()).await.unwrap();

            assert_eq!(all, acknowledged, "{half} of {bytes} bytes");
            assert!(!target.join(half).exists());
        }
    }
}

/// fjall cuts a last batch without its end, and refuses one that has its end and lost its middle.
#[cfg(feature = "fjall")]
#[tokio::test]
async fn a_last_batch_of_fjall_that_lost_its_middle_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("fjall:{}", directory.path().display());
    drop(open(&url).unwrap().store.append("run/a", 0, vec![NewRecord::new("k", "middle")]).await);
    let journals = files_of(&directory.path().join("fjall"));
    let journal = journals.iter().find(|path| path.extension().is_some_and(|end| end == "jnl"));
    let journal = journal.expect("fjall wrote a journal");
    let written = fs::read(journal).unwrap();
    let middle = written.windows(6).rposition(|bytes| bytes == b"middle").expect("the record");

    damage(journal, Fault::FlipBit, middle as u64);

    let error = open(&url).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::LogDamaged);
    assert!(error.to_string().contains("a batch in its journal that is not whole"), "{error}");
}

#[tokio::test]
async fn a_missing_database_is_a_rollback() {
    for backend in durable_backends() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("{backend}:{}", directory.path().display());
        fill(&url).await;
        fs::remove_dir_all(directory.path().join(backend)).unwrap();

        for _ in 0..2 {
            let error = open(&url).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::LogRollback, "{backend}: {error}");
        }

        // To remove the high-water mark as well is to accept the loss.
        fs::remove_file(directory.path().join("high-water")).unwrap();
        let opened = open(&url).unwrap();
        assert_eq!(*opened.store.watch().borrow(), 0);
        assert!(opened.dir.fence_base() > RECORDS, "positions come again, fences do not");
    }
}

#[tokio::test]
async fn an_older_copy_of_the_database_is_a_rollback() {
    for backend in durable_backends() {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        let url = format!("{backend}:{}", store.display());
        fill(&url).await;
        let older = directory.path().join("older");
        put(&keep(&store.join(backend)), &older);
        let opened = open(&url).unwrap();
        let record = NewRecord::new("fact", "one more");
        opened.store.append("run/0", RECORDS / STREAMS, vec![record]).await.unwrap();
        drop(opened);

        fs::remove_dir_all(store.join(backend)).unwrap();
        fs::rename(&older, store.join(backend)).unwrap();

        let error = open(&url).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::LogRollback, "{backend}: {error}");
    }
}
