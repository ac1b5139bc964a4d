//! Many machines: how soon an idle worker begins, how many jobs go through one server, what a
//! thousand idle workers cost, and how a hundred runs share eight workers. `tow serve` is a process
//! of its own, everybody else reaches it over loopback TCP, and everything is durable. Prints,
//! beside floors measured in the same run; asserts nothing.
//!
//! `cargo bench -p towpath-tests --bench remote` (needs `tow` of the same profile: it is built
//! first).

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::transport::Channel;
use towpath_proto::streams::Records;
use towpath_proto::time::duration;
use towpath_proto::v1::{
    self, gates_service_client::GatesServiceClient, log_service_client::LogServiceClient,
    runs_service_client::RunsServiceClient, session_request::Message as ToServer,
    session_response::Message as FromServer, workers_service_client::WorkersServiceClient,
};
use towpath_server::{Server, SystemClock};
use towpath_tests::{ANA, file, program, start_request, succeeded};
use towpath_wire::dial::dial_tcp;

/// Rounds of whatever varies; medians are printed.
const ROUNDS: usize = 3;
const SAMPLES: usize = 300;
const IDLE_WORKERS: usize = 1_000;
const IDLE_FOR: Duration = Duration::from_secs(10);
const BEAT_EVERY: Duration = Duration::from_secs(10);
/// Ticks of the processor clock in a second, on every Linux there is.
const TICKS: f64 = 100.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        first_byte().await;
        throughput().await;
        in_process().await;
        idle().await;
        sharing().await;
    });
}

/// A `tow serve` on a new store, and the folder it has to itself.
struct Serving {
    process: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Serving {
    fn begin() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut process = Command::new(program())
            .args(["serve", "--listen", "127.0.0.1:0", "--output", "jsonl", "--store"])
            .arg(folder.path().join("store"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("tow runs");
        let mut line = String::new();
        let said = process.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut line).expect("it says where it listens");
        let told: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let address = told["address"].as_str().expect("an address").to_owned();
        Self { process, address, folder }
    }

    fn dial(&self) -> Channel {
        dial_tcp(&self.address).expect("an address")
    }

    /// What it has in memory, in MB.
    fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("memory");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }

    /// What it has used of the processors since it began, in seconds.
    fn used(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let stat = stat.expect("a process");
        let fields = stat.rsplit_once(") ").expect("fields").1.split(' ').skip(11).take(2);
        fields.map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / TICKS
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Begins a run of the jobs of `yaml` in `folder`; answers its id.
async fn start(channel: Channel, yaml: &str, folder: &Path) -> String {
    let mut request = start_request(&file(&format!("stages: [s]\njobs:\n{yaml}")));
    request.file.as_mut().expect("a file").folder = folder.display().to_string();
    request.parallelism = 1_024;
    RunsServiceClient::new(channel)
        .start_run(request)
        .await
        .expect("a run")
        .into_inner()
        .run
        .unwrap_or_default()
        .id
}

fn no_ops(count: usize) -> String {
    (0..count).map(|n| format!("  j{n}: {{stage: s, command: x}}\n")).collect()
}

/// Waits until `runs` runs have ended; answers when each did.
async fn ended(channel: Channel, runs: usize) -> Vec<Instant> {
    let request = v1::FollowRequest { run: String::new(), after: 0, follow: true };
    let mut log = Records::new(
        LogServiceClient::new(channel).follow(request).await.expect("a log").into_inner(),
    );
    let mut ends = Vec::new();
    while ends.len() < runs {
        let record = log.next().await.expect("the log continues").expect("a record");
        if record.kind == "run_finished" {
            ends.push(Instant::now());
        }
    }
    ends
}

/// A worker that says at once that its job is done, and beats as workers do. Tells `given` about
/// every assignment.
async fn no_op_worker(
    channel: Channel,
    name: String,
    slots: u32,
    given: mpsc::UnboundedSender<Instant>,
) -> JoinHandle<()> {
    let (send, receive) = mpsc::channel(4_096);
    let say = |message| v1::SessionRequest { message: Some(message) };
    let hello = v1::Hello { worker: name, slots, ..Default::default() };
    send.send(say(ToServer::Hello(hello))).await.expect("room");
    let opened = WorkersServiceClient::new(channel).session(ReceiverStream::new(receive)).await;
    let mut incoming = opened.expect("a session").into_inner();
    incoming.next().await.expect("a welcome").expect("a welcome");
    tokio::spawn(async move {
        let mut beats = tokio::time::interval(BEAT_EVERY);
        loop {
            tokio::select! {
                _ = beats.tick() => drop(send.send(say(ToServer::Heartbeat(v1::Heartbeat {}))).await),
                message = incoming.next() => {
                    let Some(Ok(message)) = message else { return };
                    let Some(FromServer::Assignment(assignment)) = message.message else { continue };
                    let _ = given.send(Instant::now());
                    let report = v1::Report {
                        attempt: assignment.attempt,
                        run_time: Some(duration(1)),
                        ended: Some(succeeded()),
                        output_bytes: 0,
                    };
                    drop(send.send(say(ToServer::Report(report))).await);
                }
            }
        }
    })
}

/// From a job that became ready to the first thing its script does, on an idle `tow worker`.
async fn first_byte() {
    let serving = Serving::begin();
    let fifo = serving.folder.path().join("begun");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.expect("mkfifo runs").success());
    let mut worker = Command::new(program())
        .args(["worker", "--name", "w", "--server", &serving.address, "--attempts"])
        .arg(serving.folder.path().join("attempts"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tow runs");
    let opened = fs::OpenOptions::new().read(true).write(true).open(&fifo);
    let mut begun = BufReader::new(opened.expect("a pipe"));
    let jobs: String = (0..SAMPLES)
        .map(|n| format!("  j{n}: {{stage: s, when: manual, command: echo >begun}}\n"))
        .collect();
    let run = start(serving.dial(), &jobs, serving.folder.path()).await;
    let (mut runs, mut gates) =
        (RunsServiceClient::new(serving.dial()), GatesServiceClient::new(serving.dial()));
    let (mut asked, mut told, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for after in 0..SAMPLES {
        floors.push(floor());
        // The job before is recorded, and the worker waits again.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let request = v1::ListJobsRequest {
            run: run.clone(),
            page_size: 1,
            page_token: after.to_string(),
            ..Default::default()
        };
        let page = runs.list_jobs(request).await.expect("a page").into_inner();
        let job = page.jobs.into_iter().next().expect("a job");
        let request = v1::ApproveGateRequest {
            run: run.clone(),
            job: job.name,
            approval_digest: job.approval_digest,
            actor: ANA.to_owned(),
            ..Default::default()
        };
        let began = Instant::now();
        gates.approve_gate(request).await.expect("the gate opens");
        let answered = Instant::now();
        let mut line = String::new();
        tokio::task::block_in_place(|| begun.read_line(&mut line)).expect("the script begins");
        asked.push(began.elapsed());
        told.push(answered.elapsed());
    }
    drop(worker.kill());
    drop(worker.wait());
    println!("job ready → script started, {SAMPLES} samples      p50       p99");
    for (what, times) in [
        ("gate asked to open → started", &mut asked),
        ("gate known to be open → started", &mut told),
        ("floor: fdatasync + spawn + round trip", &mut floors),
    ] {
        times.sort();
        println!("  {what:40} {:>9} {:>9}", words(part(times, 50)), words(part(times, 99)));
    }
}

/// One durable append of 300 bytes, one shell that writes a byte, and one round trip over TCP.
fn floor() -> Duration {
    let mut log = tempfile::tempfile().expect("a file");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut near = TcpStream::connect(listener.local_addr().expect("a port")).expect("a way");
    let (mut far, _) = listener.accept().expect("a way");
    near.set_nodelay(true).expect("a socket");
    far.set_nodelay(true).expect("a socket");
    let mut byte = [0];
    let began = Instant::now();
    log.write_all(&[b'x'; 300]).expect("room");
    log.sync_data().expect("the disk takes it");
    near.write_all(&byte).expect("a way");
    far.read_exact(&mut byte).expect("a way");
    far.write_all(&byte).expect("a way");
    near.read_exact(&mut byte).expect("a way");
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "echo"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh runs");
    shell.stdout.take().expect("a pipe").read_exact(&mut byte).expect("it writes");
    let took = began.elapsed();
    drop(shell.wait());
    took
}

/// How many jobs a second go through, with so many no-op workers of one slot.
async fn throughput() {
    println!("\nleases + completions, durable   jobs/s  ×fdatasync  server CPU per job");
    for (workers, jobs) in [(1, 1_000), (8, 4_000), (32, 8_000)] {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let serving = Serving::begin();
            let given = mpsc::unbounded_channel().0;
            for n in 0..workers {
                no_op_worker(serving.dial(), format!("w{n}"), 1, given.clone()).await;
            }
            let ending = tokio::spawn(ended(serving.dial(), 1));
            let (used, began) = (serving.used(), Instant::now());
            start(serving.dial(), &no_ops(jobs), serving.folder.path()).await;
            let end = ending.await.expect("an end")[0];
            let rate = jobs as f64 / (end - began).as_secs_f64();
            rates.push((rate, rate * fdatasync(), (serving.used() - used) / jobs as f64));
        }
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (rate, ratio, used) = rates[ROUNDS / 2];
        println!(
            "  {workers:>3} workers                  {rate:>8.0} {ratio:>11.2} {:>14.0} µs",
            used * 1e6
        );
    }
}

/// The same with server and workers in one process, over its pipe.
async fn in_process() {
    const JOBS: usize = 20_000;
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sled:{}", folder.path().join("store").display());
        let server = Server::open(&url, Arc::new(SystemClock)).await.expect("a server");
        let given = mpsc::unbounded_channel().0;
        for n in 0..4 {
            no_op_worker(server.connect(), format!("w{n}"), 64, given.clone()).await;
        }
        let ending = tokio::spawn(ended(server.connect(), 1));
        start(server.connect(), &no_ops(JOBS), folder.path()).await;
        let began = Instant::now();
        let end = ending.await.expect("an end")[0];
        rates.push(JOBS as f64 / (end - began).as_secs_f64());
        server.close().await;
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "  in process, 4 workers × 64 slots {:>8.0} (after the run was begun)",
        rates[ROUNDS / 2]
    );
}

/// How long it takes from the answer that a run has begun until its one job is with a worker.
async fn give_out(serving: &Serving, given: &mut mpsc::UnboundedReceiver<Instant>) -> Duration {
    let mut times = Vec::new();
    for _ in 0..51 {
        start(serving.dial(), &no_ops(1), serving.folder.path()).await;
        let begun = Instant::now();
        let at = given.recv().await.expect("it is given out");
        times.push(at.saturating_duration_since(begun));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times.sort();
    part(&times, 50)
}

/// What workers cost that have nothing to do.
async fn idle() {
    println!("\nidle workers      RSS, MB   per worker   CPU over {IDLE_FOR:?}   a job given out");
    let serving = Serving::begin();
    let (given, mut givens) = mpsc::unbounded_channel();
    let mut empty = 0.0;
    for (count, from) in [(1, 0), (IDLE_WORKERS, 1)] {
        if from == 1 {
            empty = serving.resident();
        }
        for n in from..count {
            no_op_worker(serving.dial(), format!("w{n}"), 1, given.clone()).await;
        }
        let used = serving.used();
        tokio::time::sleep(IDLE_FOR).await;
        let used = serving.used() - used;
        let resident = serving.resident();
        let each = (resident - empty) * 1024.0 / count as f64;
        let each = if from == 0 { "-".to_owned() } else { format!("{each:.0} KB") };
        let out = words(give_out(&serving, &mut givens).await);
        println!("  {count:>8}        {resident:>8.1} {each:>12} {used:>12.2} s  {out:>16}");
    }
}

/// A hundred runs at once, and eight workers for all of them.
async fn sharing() {
    const RUNS: usize = 100;
    const JOBS: usize = 20;
    println!(
        "\n{RUNS} runs of {JOBS} jobs, 8 workers   total   jobs/s   last run / first run to end"
    );
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let serving = Serving::begin();
        for _ in 0..RUNS {
            start(serving.dial(), &no_ops(JOBS), serving.folder.path()).await;
        }
        let ending = tokio::spawn(ended(serving.dial(), RUNS));
        let given = mpsc::unbounded_channel().0;
        let began = Instant::now();
        for n in 0..8 {
            no_op_worker(serving.dial(), format!("w{n}"), 1, given.clone()).await;
        }
        let ends = ending.await.expect("ends");
        let took = |end: &Instant| end.saturating_duration_since(began).as_secs_f64();
        rounds.push((took(&ends[RUNS - 1]), took(&ends[0])));
    }
    rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (last, first) = rounds[ROUNDS / 2];
    let rate = (RUNS * JOBS) as f64 / last;
    println!("                               {:>7.2} s {rate:>8.0} {:>12.2}", last, last / first);
}

/// How long one takes, in seconds.
fn fdatasync() -> f64 {
    let mut file = tempfile::tempfile().expect("a file");
    let began = Instant::now();
    for _ in 0..200 {
        file.write_all(&[b'x'; 300]).expect("room");
        file.sync_data().expect("the disk takes it");
    }
    began.elapsed().as_secs_f64() / 200.0
}

/// What `percent` of the sorted `times` do not exceed.
fn part(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn words(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
