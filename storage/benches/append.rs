//! How fast appends become durable and records are replayed, beside the floor of the same disk.
//!
//! `cargo bench -p towpath-storage --bench append`. The floor is a plain file to which the same
//! bytes are appended, each followed by `fdatasync`. Floor and clients take turns in short slices,
//! because a shared disk has moods. Prints tables; asserts nothing.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use towpath_storage::{BACKENDS, EventStore, NewRecord, open, verify};

/// Typical event, in bytes.
const PAYLOAD_BYTES: usize = 300;

/// How long one slice is measured, and how many slices make a row.
const SLICE: Duration = Duration::from_millis(500);
const SLICES: u32 = 6;

/// Records of the replay rows.
const REPLAY_RECORDS: u64 = 300_000;

fn main() {
    let directory = tempfile::Builder::new().prefix("tow-bench-").tempdir_in(target());
    let directory = directory.expect("a directory on the disk to measure");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build();
    let runtime = runtime.expect("a runtime");
    println!("{PAYLOAD_BYTES}-byte records; durable appends per second");
    for backend in BACKENDS.iter().filter(|backend| backend.is_durable()) {
        let backend = backend.scheme();
        println!("\n{backend:8} {:>9} {:>9} {:>9} {:>9}", "floor", "appends", "x floor", "x one");
        let place = |name: &str| format!("{backend}:{}", directory.path().join(name).display());
        let mut one = 0.0;
        for clients in [1, 8, 64] {
            let opened = open(&place(&format!("{backend}{clients}"))).expect("a store");
            let (mut floor_sum, mut sum) = (0.0, 0.0);
            for slice in 0..SLICES {
                floor_sum += floor(directory.path());
                sum += runtime.block_on(appends(&opened.store, clients, slice));
            }
            let (floor, rate) = (floor_sum / f64::from(SLICES), sum / f64::from(SLICES));
            if clients == 1 {
                one = rate;
            }
            let (of_floor, of_one) = (rate / floor, rate / one);
            let name = format!("{clients} cl.");
            println!("{name:8} {floor:>9.0} {rate:>9.0} {of_floor:>9.2} {of_one:>9.2}");
        }
        runtime.block_on(replays(&place(&format!("{backend}-replay"))));
    }
}

/// The `target` directory, which lies on the disk the build uses; `/tmp` is often memory.
fn target() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_TMPDIR").map_or_else(|| Path::new(".").to_owned(), Into::into)
}

/// Durable appends per second of one plain file.
fn floor(directory: &Path) -> f64 {
    let path = directory.join("floor");
    let mut options = OpenOptions::new();
    let mut file: File = options.create(true).append(true).open(path).expect("a file");
    let payload = [b'x'; PAYLOAD_BYTES];
    let (since, mut count) = (Instant::now(), 0_u32);
    while since.elapsed() < SLICE {
        file.write_all(&payload).expect("written");
        file.sync_data().expect("synced");
        count += 1;
    }
    f64::from(count) / since.elapsed().as_secs_f64()
}

/// Durable appends per second of `clients`, each with a stream of its own.
async fn appends(store: &Arc<dyn EventStore>, clients: u32, slice: u32) -> f64 {
    let since = Instant::now();
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let stream = format!("run/{slice}/{client}");
                let mut count = 0;
                while since.elapsed() < SLICE {
                    let record = NewRecord::new("job_leased", vec![b'x'; PAYLOAD_BYTES]);
                    store.append(&stream, count, vec![record]).await.expect("appended");
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut total = 0;
    for client in clients {
        total += client.await.expect("a client");
    }
    f64::from(u32::try_from(total).expect("few")) / since.elapsed().as_secs_f64()
}

/// Bytes that the files below `directory` take on the disk.
fn bytes_in(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let sizes = entries.map(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return bytes_in(&path);
        }
        path.metadata().expect("a file").blocks() * 512
    });
    sizes.sum()
}

/// Records per second: the log, one stream of many, and the whole audit, all after reopening.
async fn replays(url: &str) {
    let opened = open(url).expect("a store");
    let streams = 64;
    let mut waiting = Vec::new();
    for n in 0..REPLAY_RECORDS {
        let record = NewRecord::new("job_leased", vec![b'x'; PAYLOAD_BYTES]);
        let stream = format!("run/{}", n % streams);
        waiting.push(opened.store.append(&stream, n / streams, vec![record]));
        if waiting.len() == 10_000 {
            for append in waiting.drain(..) {
                append.await.expect("appended");
            }
        }
    }
    drop(waiting);
    drop(opened);
    let since = Instant::now();
    let opened = open(url).expect("a store");
    println!(
        "open     {:>9.1} ms with {REPLAY_RECORDS} records",
        since.elapsed().as_secs_f64() * 1e3
    );
    let rate = |what: &str, count: u64, since: Instant| {
        let count = f64::from(u32::try_from(count).expect("few"));
        println!("{what:8} {:>9.0}", count / since.elapsed().as_secs_f64());
    };
    let bytes = bytes_in(opened.dir.path());
    println!("disk     {:>9} bytes per record", bytes / REPLAY_RECORDS);
    let (since, mut position) = (Instant::now(), 0);
    loop {
        let page = opened.store.read_all(position, 4096).await.expect("a page");
        let Some(last) = page.last() else { break };
        position = last.position;
    }
    rate("replay", position, since);
    let (since, mut read) = (Instant::now(), 0);
    for stream in 0..streams {
        let stream = format!("run/{stream}");
        let mut version = 0;
        loop {
            let page = opened.store.read(&stream, version, 4096).await.expect("a page");
            let Some(last) = page.last() else { break };
            version = last.version;
        }
        read += version;
    }
    rate("streams", read, since);
    let since = Instant::now();
    let verified = verify(opened.store.as_ref(), |_| {}).await.expect("a sound log");
    rate("verify", verified.records, since);
}
