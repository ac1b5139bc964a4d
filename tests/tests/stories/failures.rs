//! What goes wrong between machines, with real programs where it matters: processes that are
//! stopped and woken, clocks that are wrong, answers that never arrive, readers that do not read,
//! jobs that leave something running.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_stream::StreamExt as _;
use towpath_engine::time::Timestamp;
use towpath_proto::v1::{
    self, report::Ended, runs_service_client::RunsServiceClient,
    session_request::Message as ToServer, workers_service_client::WorkersServiceClient,
};
use towpath_server::{Clock as _, SystemClock};
use towpath_tests::SeenJob as _;
use towpath_tests::{
    RealWorker, ScriptedWorker, TestServer, eventually, file, on_a_runtime, program, skip,
    start_request, succeeded,
};
use towpath_wire::dial::dial_tcp;

const ONE: &str = "stages: [s]\njobs:\n  a: {stage: s, command: x}\n";
const ANYWHERE: &str = "127.0.0.1:0";

/// A process that does not outlive its story.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        kill(pid, signal).expect("it can be sent a signal");
    }

    /// Lets it end in good order.
    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.0.wait().expect("a child can be waited for").success(), "it ends well");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A `tow worker` with a process of its own.
fn worker(server: &str, name: &str, folder: &Path) -> Command {
    let mut command = Command::new(program());
    command.args(["worker", "--server", server, "--name", name, "--attempts"]);
    command.arg(folder.join(name)).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn begin(mut command: Command) -> Running {
    Running(command.spawn().expect("it can be started"))
}

/// A run of jobs that are real processes, in `folder`.
async fn start_in(server: &TestServer, folder: &Path, yaml: &str) -> String {
    let mut request = start_request(&file(yaml));
    request.file.as_mut().expect("a file").folder = folder.display().to_string();
    server.try_start(request).await.expect("the run begins").id
}

fn is_gone(pid: &str) -> bool {
    // A process without a `wait` from its parent is dead as well.
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

/// A way to a server that can be told to swallow the answers.
struct Way {
    address: String,
    swallows: watch::Sender<bool>,
}

impl Way {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind(ANYWHERE).await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (swallows, told) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&server).await.expect("the server listens");
                let (mut near_in, mut near_out) = near.into_split();
                let (mut far_in, mut far_out) = far.into_split();
                let told = told.clone();
                tokio::spawn(async move { tokio::io::copy(&mut near_in, &mut far_out).await });
                tokio::spawn(async move {
                    let mut answer = vec![0; 16 * 1024];
                    while let Ok(length @ 1..) = far_in.read(&mut answer).await {
                        if !*told.borrow() {
                            drop(near_out.write_all(&answer[..length]).await);
                        }
                    }
                });
            }
        });
        Self { address, swallows }
    }

    fn swallow(&self) {
        self.swallows.send_replace(true);
    }
}

#[test]
fn what_was_recorded_and_never_answered_is_answered_when_it_is_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let request =
        || v1::StartRunRequest { idempotency_key: "k".to_owned(), ..start_request(&file(ONE)) };
    // The server dies with its runtime, between the append and the reply.
    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let way = Way::to(server.serve(ANYWHERE).await).await;
        let channel = dial_tcp(&way.address).expect("an address");
        let list = v1::ListWorkersRequest::default();
        WorkersServiceClient::new(channel.clone())
            .list_workers(list)
            .await
            .expect("the way is open");

        way.swallow();
        let asked =
            tokio::spawn(async move { RunsServiceClient::new(channel).start_run(request()).await });
        while server.records("", 0).await.is_empty() {
            tokio::task::yield_now().await;
        }

        assert!(!asked.is_finished(), "no worker was informed");
    });
    let of = on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let run = server.try_start(request()).await.expect("the same run").id;
        let created = server.records("", 0).await.into_iter().filter(|r| r.kind == "run_created");
        assert_eq!(created.count(), 1);
        let way = Way::to(server.serve(ANYWHERE).await).await;
        let hello = v1::Hello { worker: "w".to_owned(), slots: 1, ..Default::default() };
        let channel = dial_tcp(&way.address).expect("an address");
        let mut worker = ScriptedWorker::connect(channel, hello).await.expect("it is welcome");
        let of = worker.take_job("a").await.attempt.expect("an attempt");

        way.swallow();
        worker.send_report(&of, succeeded(), 0).await;

        server.until(&run, "job_succeeded", 1).await;
        of
    });

    on_a_runtime(async {
        let server = TestServer::in_folder(folder.path()).await;
        let kinds = server.kinds(&of.run).await;
        let held = vec![of.clone()];
        let hello = v1::Hello { worker: "w".to_owned(), slots: 1, held, ..Default::default() };
        let worker = server.worker_like(hello).await;
        assert_eq!(worker.held(), [], "there is nothing left to tell");
        assert_eq!(server.phase(&of.run).await, "succeeded");
        assert_eq!(server.kinds(&of.run).await, kinds);
        assert_eq!(server.findings().await, Vec::<String>::new());
        server.close().await;
    });
}

#[tokio::test]
async fn many_workers_race_for_few_jobs_and_each_job_is_given_out_once() {
    let server = TestServer::in_memory().await;
    let mut racing = Vec::new();
    for n in 0..16 {
        let mut worker = server.worker(&format!("w{n}"), 4).await;
        racing.push(tokio::spawn(async move { worker.run_until_closed().await }));
    }
    let jobs: String = (0..40).map(|n| format!("  j{n}: {{stage: s, command: x}}\n")).collect();

    let run = server.start_with(&file(&format!("stages: [s]\njobs:\n{jobs}")), 64).await;
    assert_eq!(server.ended(&run).await, "succeeded");
    let one = server.start(&file(ONE)).await;
    assert_eq!(server.ended(&one).await, "succeeded");

    assert_eq!(server.count(&run, "job_leased").await, 40);
    assert_eq!(server.count(&one, "job_leased").await, 1);
    server.close().await;
    let mut given = 0;
    for worker in racing {
        given += worker.await.expect("the worker does not panic");
    }
    assert_eq!(given, 41, "no worker was assigned a job of another");
}

#[tokio::test]
async fn after_its_end_a_job_is_changed_by_no_report_and_no_beat() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;
    let of = a.attempt.clone().expect("an attempt");
    server.cancel(&run).await.expect("the run is ending");
    worker.cancelled_job().await;
    // Two reports are on their way when the first of them counts.
    worker.send_report(&of, Ended::Cancelled(v1::Cancelled {}), 0).await;
    worker.send_report(&of, succeeded(), 0).await;
    assert_eq!(server.ended(&run).await, "cancelled");
    let kinds = server.kinds(&run).await;

    let held = vec![of.clone()];
    let hello = v1::Hello { worker: "w".to_owned(), slots: 1, held, ..Default::default() };
    let mut back = server.worker_like(hello).await;
    assert_eq!(back.held(), []);
    back.say(ToServer::Heartbeat(v1::Heartbeat {})).await;
    back.send_report(&of, succeeded(), 0).await;
    back.until_recorded(&of).await;

    assert_eq!(server.kinds(&run).await, kinds);
    assert_eq!(server.states(&run).await, "a cancelled");
    assert_eq!(server.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_worker_process_that_is_stopped_past_its_lease_ends_its_job_when_it_wakes() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_lease("memory:", 1_000).await;
    let address = server.serve(ANYWHERE).await;
    let sleeper = begin(worker(&address, "sleeper", folder.path()));
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, grace: 1s, command: '[ $TOW_ATTEMPT = 2 ] && exit 0; echo $$ >pid; mv pid first; while :; do sleep 0.01; done'}\n";
    let run = start_in(&server, folder.path(), yaml).await;
    let first = folder.path().join("first");
    eventually("the job runs", || first.exists()).await;

    sleeper.signal(Signal::SIGSTOP);
    server.until(&run, "job_lost", 1).await;
    let awake = RealWorker::begin(&server, "awake", 1, folder.path());
    assert_eq!(server.ended(&run).await, "succeeded");
    let kinds = server.kinds(&run).await;
    let pid = fs::read_to_string(&first).expect("a pid").trim().to_owned();
    assert!(!is_gone(&pid), "the first attempt was not ended");
    sleeper.signal(Signal::SIGCONT);

    eventually("the first attempt is ended", || is_gone(&pid)).await;
    sleeper.stop();
    assert_eq!(server.kinds(&run).await, kinds);
    awake.stop().await;
}

/// When a record was decided.
fn time(record: &v1::Record) -> Timestamp {
    let fact = towpath_engine::codec::decode::<towpath_engine::event::RunEvent>(&record.payload)
        .expect("a fact");
    fact.at
}

/// Makes a library that sets the clock of a process that preloads it forward by `seconds`; `None`
/// where it cannot be made, or has no effect.
fn wrong_clock(folder: &Path, seconds: i64) -> Option<std::path::PathBuf> {
    let (source, library) = (folder.join("clock.c"), folder.join(format!("clock{seconds}.so")));
    let text = format!(
        "#include <sys/syscall.h>\n#include <time.h>\n#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += {seconds};
    return failed;
}}\n"
    );
    fs::write(&source, text).expect("a file");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).args([&library, &source]).stderr(Stdio::null());
    compiler.status().ok().filter(std::process::ExitStatus::success)?;
    let now = || std::time::UNIX_EPOCH.elapsed().expect("it is after 1970").as_secs() as i64;
    let shown = Command::new("date").arg("+%s").env("LD_PRELOAD", &library).output().ok()?;
    let shown: i64 = String::from_utf8(shown.stdout).ok()?.trim().parse().ok()?;
    ((shown - now() - seconds).abs() < 60).then_some(library)
}

#[tokio::test]
async fn a_worker_whose_clock_is_a_day_off_loses_nothing_and_is_believed_no_time() {
    const DAY: i64 = 24 * 60 * 60;
    let folder = tempfile::tempdir().expect("a folder");
    let (Some(ahead), Some(behind)) =
        (wrong_clock(folder.path(), DAY), wrong_clock(folder.path(), -DAY))
    else {
        return skip("clock", "no clock can be set wrong here: that needs `cc` and LD_PRELOAD");
    };
    let server = TestServer::with_lease("memory:", 2_000).await;
    let address = server.serve(ANYWHERE).await;
    let workers: Vec<Running> = [("ahead", ahead), ("behind", behind)]
        .into_iter()
        .map(|(name, clock)| {
            let mut command = worker(&address, name, folder.path());
            command.args(["--tags", name]).env("LD_PRELOAD", clock);
            begin(command)
        })
        .collect();
    let job = |tag: &str| {
        format!(
            "  long-{tag}: {{stage: s, tags: [{tag}], command: 'echo x; sleep 3', timeout: 15s}}
  slow-{tag}: {{stage: s, tags: [{tag}], command: sleep 60, timeout: 1s, needs: [long-{tag}]}}
  again-{tag}: {{stage: s, tags: [{tag}], retry: {{max: 1, backoff: 100ms}}, command: '[ $TOW_ATTEMPT = 2 ]'}}\n"
        )
    };
    let began = SystemClock.now();

    let yaml = format!("stages: [s]\njobs:\n{}{}", job("ahead"), job("behind"));
    let run = start_in(&server, folder.path(), &yaml).await;

    assert_eq!(server.ended(&run).await, "timed_out");
    for tag in ["ahead", "behind"] {
        let state = async |name: &str| server.job(&run, &format!("{name}-{tag}")).await.word();
        assert_eq!(state("long").await, "succeeded");
        assert_eq!(state("slow").await, "timed_out");
        assert_eq!(state("again").await, "succeeded");
    }
    assert_eq!(server.count(&run, "job_lost").await, 0);
    let records = server.records(&run, 0).await;
    let times: Vec<Timestamp> = records.iter().map(time).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(times.iter().all(|at| (began..=SystemClock.now()).contains(at)), "{times:?}");
    workers.into_iter().for_each(Running::stop);
}

/// What the process `pid` has in memory, in MiB.
fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// Waits until the process `pid` has nothing to do any more.
async fn until_idle(pid: u32) {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        let fields = stat.rsplit_once(") ").expect("fields").1.split(' ').skip(11).take(2);
        fields.map(|ticks| ticks.parse::<u64>().expect("ticks")).sum::<u64>()
    };
    let mut before = None;
    while before.is_none_or(|before| ticks() > before + 1) {
        before = Some(ticks());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn readers_that_do_not_read_cost_the_server_no_memory() {
    const READERS: usize = 64;
    const PART_BYTES: usize = 32 * 1024;
    const PARTS: usize = 512;
    // 64 copies of 16 MiB would be eight times as much.
    const GROWTH_MIB_MAX: u64 = 128;
    let folder = tempfile::tempdir().expect("a folder");
    let said = folder.path().join("said");
    let mut command = Command::new(program());
    command.args(["serve", "--listen", ANYWHERE, "--output", "json", "--store"]);
    command.arg(folder.path().join("store")).stdin(Stdio::null()).stderr(Stdio::null());
    let server = begin({
        command.stdout(fs::File::create(&said).expect("a file"));
        command
    });
    let ready = || fs::read_to_string(&said).unwrap_or_default().contains("\"pid\"");
    eventually("the server listens", ready).await;
    let told: serde_json::Value =
        serde_json::from_slice(&fs::read(&said).expect("a file")).expect("JSON");
    let channel = || dial_tcp(told["address"].as_str().expect("an address")).expect("an address");
    // A job that prints 16 MiB.
    let run = RunsServiceClient::new(channel()).start_run(start_request(&file(ONE))).await;
    let run = run.expect("the run begins").into_inner().run.expect("a run").id;
    let hello = v1::Hello { worker: "w".to_owned(), slots: 1, ..Default::default() };
    let mut worker = ScriptedWorker::connect(channel(), hello).await.expect("it is welcome");
    let a = worker.take_job("a").await;
    let part = vec![b'x'; PART_BYTES];
    for number in 0..PARTS {
        worker.print(&a, (number * PART_BYTES) as u64, &part).await;
    }
    worker.report_printed(&a, succeeded(), (PARTS * PART_BYTES) as u64).await;
    until_idle(server.0.id()).await;
    let before = resident_mib(server.0.id());

    let mut slow = Vec::new();
    for _ in 0..READERS {
        let (run, job) = (run.clone(), "a".to_owned());
        let request = v1::ReadOutputRequest { run, job, attempt: 0, follow: false };
        let mut runs = RunsServiceClient::new(channel());
        let mut stream = runs.read_output(request).await.expect("output").into_inner();
        stream.next().await.expect("the output continues").expect("a chunk");
        slow.push(stream);
    }
    until_idle(server.0.id()).await;

    let grown = resident_mib(server.0.id()).saturating_sub(before);
    assert!(grown < GROWTH_MIB_MAX, "the server grew by {grown} MiB, from {before} MiB");
    drop(slow);
    server.stop();
}

#[tokio::test]
async fn a_job_that_forks_daemons_leaves_none_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "w", 2, folder.path());
    // Each notes its pid; none of them ends by itself, or when it is asked to.
    let daemon = |name: &str| {
        format!(
            "(setsid sh -c 'trap \"\" TERM HUP; echo $$ >{name}; while :; do sleep 0.1; done' &) </dev/null >/dev/null 2>&1"
        )
    };
    let yaml = format!(
        "stages: [s]
jobs:
  well:
    stage: s
    command: |
      {}
      until [ -s one ]; do sleep 0.01; done
  badly:
    stage: s
    command: |
      {}
      until [ -s two ]; do sleep 0.01; done
      exit 1
  late:
    stage: s
    timeout: 1s
    grace: 1s
    command: |
      {}
      sleep 60
",
        daemon("one"),
        daemon("two"),
        daemon("three")
    );

    let run = start_in(&server, folder.path(), &yaml).await;

    assert_eq!(server.ended(&run).await, "failed");
    for name in ["one", "two", "three"] {
        let pid = fs::read_to_string(folder.path().join(name)).expect("a pid").trim().to_owned();
        eventually(&format!("the daemon {name} is gone"), || is_gone(&pid)).await;
    }
    worker.stop().await;
}
