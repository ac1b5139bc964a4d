//! What a job costs the server beside others that wait: idle workers, waiting runs, and followers
//! of an idle run. Each line is measured beside the same jobs alone, in the same process; ratios
//! are what counts. Prints; asserts nothing.
//!
//! `cargo bench -p towpath-tests --bench scheduler`

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::transport::Channel;
use towpath_engine::{
    decide::{Command, CreateRun, Ended, LeaseJob, ReportJob, carry_out},
    event::{Fact, RunEvent},
    gate::Identity,
    ids::{Actor, AttemptId, Digest, RunId, WorkerName},
    plan::{JobPlan, Plan, Resource},
    run::Run,
    scheduler::{Effect, Hello, Input, Leased, Message, Scheduler, SessionId},
    time::Timestamp,
};
use towpath_proto::streams::Records;
use towpath_proto::time::duration;
use towpath_proto::v1::{
    self, log_service_client::LogServiceClient, runs_service_client::RunsServiceClient,
    session_request::Message as ToServer, session_response::Message as FromServer,
    workers_service_client::WorkersServiceClient,
};
use towpath_server::{Server, SystemClock};
use towpath_tests::{file, start_request, succeeded};

const ROUNDS: usize = 5;
const JOBS: usize = 500;
const IDLE_WORKERS: usize = 10_000;
const WAITING_RUNS: usize = 3_000;
const FOLLOWERS: usize = 1_000;
/// Sessions or followers that share a connection.
const PER_CONNECTION: usize = 100;
const TICKS: f64 = 100.0;

fn main() {
    pure();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(driven());
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, took: f64, alone: f64) {
    println!("  {what:44} {took:>9.2} ms {:>6.2} ×", took / alone);
}

// --- the scheduler alone -----------------------------------------------------------------------

const AT: Timestamp = Timestamp(1_000);

/// The scheduler and the runs that it is told of, without a store: everything is durable at once.
struct Bench {
    scheduler: Scheduler,
    runs: BTreeMap<RunId, Run>,
    effects: VecDeque<Effect>,
    given: VecDeque<(SessionId, AttemptId)>,
    sessions: u64,
    version: u64,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        Self {
            scheduler: Scheduler::new(Duration::from_secs(30)),
            runs: BTreeMap::new(),
            effects: VecDeque::new(),
            given: VecDeque::new(),
            sessions: 0,
            version: 0,
            now: Duration::ZERO,
        }
    }

    fn on(&mut self, input: Input<'_>) {
        let mut effects = Vec::new();
        self.scheduler.on(input, self.now, &mut effects);
        self.effects.extend(effects);
    }

    fn decide(&mut self, run: &RunId, commands: &[Command]) -> Vec<Leased> {
        let mut facts: Vec<Fact> = Vec::new();
        let mut state = self.runs.remove(run).unwrap_or_default();
        for command in commands {
            let mut command = command.clone();
            if let Command::Lease(lease) = &mut command {
                lease.busy = self.scheduler.locks_of_others(run, state.locks());
            }
            let written = carry_out(&mut state, &command, &Actor::timer(), AT);
            facts.extend(written.expect("it is decided").into_iter().map(|(fact, _)| fact));
        }
        self.version += 1;
        let version = self.version;
        self.on(Input::RunDecided { run, state: &state, version, facts: &facts, at: AT });
        self.runs.insert(run.clone(), state);
        self.on(Input::RunDurable { run, version, facts: &facts });
        let mut all = Vec::new();
        for fact in &facts {
            if let RunEvent::JobLeased { job, attempt, .. } = &fact.event {
                let (run, job, attempt) = (run.clone(), job.clone(), *attempt);
                all.push(Leased { attempt: AttemptId { run, job, attempt }, fence: 1 });
            }
        }
        all
    }

    fn create(&mut self, id: &str, jobs: Vec<JobPlan>) {
        let plan =
            Plan { pipeline: "p".to_owned(), stages: vec!["s".into()], jobs, timeout_ms: None };
        let create = CreateRun {
            run: id.into(),
            file: "towpath.yml".to_owned(),
            folder: String::new(),
            file_sha256: Digest([1; 32]),
            plan,
            parallelism: 1_024,
            gates_preapproved: false,
            traceparent: None,
            idempotency_key: None,
            source: None,
            requester: Identity::default(),
            authors: None,
        };
        self.decide(&id.into(), &[Command::Create(create)]);
        self.work();
    }

    fn worker(&mut self, name: &str, tags: &[&str], slots: u32) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let hello = Hello {
            worker: name.into(),
            worker_instance_id: String::new(),
            version: String::new(),
            slots,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            only: None,
            job: None,
            jobs_max: None,
            draining: false,
            held: [].into(),
            since: AT,
        };
        self.on(Input::Hello { session, hello });
        self.work();
    }

    fn lease(&mut self, session: SessionId, run: RunId, lease: LeaseJob) {
        let leased = self.decide(&run, &[Command::Lease(lease)]);
        let recorded = !leased.is_empty();
        self.on(Input::LeaseDecided { session, run, recorded });
        if recorded {
            self.on(Input::LeaseDurable { session, leased });
        }
    }

    fn work(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Lease { session, run, lease } => self.lease(session, run, lease),
                Effect::Reconcile { session, .. } => {
                    self.on(Input::Reconciled { session, leased: Some(Vec::new()) });
                }
                Effect::Deliver { session } => self.deliver(session),
                Effect::Record { .. }
                | Effect::Lose { .. }
                | Effect::Opened { .. }
                | Effect::CheckJob { .. }
                | Effect::Close { .. }
                | Effect::Notice(_) => {}
            }
        }
    }

    fn deliver(&mut self, session: SessionId) {
        let mut effects = Vec::new();
        while let Some(message) = self.scheduler.next_message(session, &mut effects) {
            if let Message::Assign { attempt, .. } = message {
                self.given.push_back((session, attempt));
            }
        }
        self.effects.extend(effects);
    }

    /// Every job that is given out succeeds, until there is none.
    fn finish(&mut self) {
        while let Some((session, attempt)) = self.given.pop_front() {
            let mut effects = Vec::new();
            let report = Input::Report { session, attempt: &attempt };
            self.scheduler.on(report, self.now, &mut effects);
            let mut commands = Vec::new();
            for effect in effects {
                if let Effect::Record { worker, lease } = effect {
                    commands.push(success(&attempt, worker));
                    commands.extend(lease.map(Command::Lease));
                } else {
                    self.effects.push_back(effect);
                }
            }
            let with_lease = commands.len() > 1;
            let leased = self.decide(&attempt.run.clone(), &commands);
            self.on(Input::Recorded { session, attempt, with_lease, leased });
            self.now += Duration::from_millis(1);
            self.on(Input::Heartbeat { session });
            if self.now.as_millis().is_multiple_of(100) {
                self.on(Input::Tick);
            }
            self.work();
        }
    }
}

fn success(attempt: &AttemptId, worker: WorkerName) -> Command {
    let ended = Ended::Succeeded { outputs: BTreeMap::new(), artifacts: Vec::new() };
    let (job, attempt) = (attempt.job.clone(), attempt.attempt);
    Command::Report(ReportJob { job, attempt, worker, ended, ran_ms: 1, captured_output: None })
}

/// The time for 500 jobs of one run on four workers, in milliseconds.
fn jobs_beside(prepare: impl Fn(&mut Bench)) -> f64 {
    let round = || {
        let mut bench = Bench::new();
        prepare(&mut bench);
        for n in 0..4 {
            bench.worker(&format!("busy{n}"), &["busy"], 4);
        }
        let job = |n: usize| {
            let mut job = JobPlan::new(&format!("j{n}"), "s", "true");
            job.tags = vec!["busy".to_owned()];
            job
        };
        let began = Instant::now();
        bench.create("r", (0..JOBS).map(job).collect());
        bench.finish();
        let took = began.elapsed().as_secs_f64() * 1e3;
        assert!(!bench.runs[&RunId::from("r")].phase().is_live(), "all jobs have run");
        took
    };
    median((0..ROUNDS).map(|_| round()).collect())
}

fn waiting_job(kind: &str) -> JobPlan {
    let mut job = JobPlan::new("w", "s", "true");
    match kind {
        "lock" => {
            job.tags = vec!["busy".to_owned()];
            job.resource = Some(Resource { name: "held".to_owned(), limit: 1 });
        }
        _ => job.tags = vec!["nobody".to_owned()],
    }
    job
}

fn pure() {
    println!("{JOBS} jobs, the scheduler and the runs alone");
    let alone = jobs_beside(|_| {});
    row("alone", alone, alone);
    let idle = |bench: &mut Bench| {
        for n in 0..IDLE_WORKERS {
            bench.worker(&format!("idle{n}"), &["idle", "linux"], 1);
        }
    };
    row(&format!("beside {IDLE_WORKERS} idle workers"), jobs_beside(idle), alone);
    let tagged = |bench: &mut Bench| {
        for n in 0..WAITING_RUNS {
            bench.create(&format!("a{n:05}"), vec![waiting_job("tag")]);
        }
    };
    row(&format!("beside {WAITING_RUNS} runs that wait for a tag"), jobs_beside(tagged), alone);
    let locked = |bench: &mut Bench| {
        // Its one place is taken by a run that waits for its worker for ever.
        bench.worker("holder", &["busy"], 1);
        bench.create("0holder", vec![waiting_job("lock")]);
        bench.given.clear();
        for n in 0..WAITING_RUNS {
            bench.create(&format!("a{n:05}"), vec![waiting_job("lock")]);
        }
    };
    row(&format!("beside {WAITING_RUNS} runs that wait for a lock"), jobs_beside(locked), alone);
    let both = |bench: &mut Bench| {
        idle(bench);
        tagged(bench);
    };
    row("beside idle workers and waiting runs", jobs_beside(both), alone);
}

// --- the server --------------------------------------------------------------------------------

/// What this process has used of the processors, in milliseconds.
fn used() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("a process");
    let fields = stat.rsplit_once(") ").expect("fields").1.split(' ').skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / TICKS * 1e3
}

async fn session(channel: Channel, name: String, tags: &[&str], slots: u32) {
    let (send, receive) = mpsc::channel(4_096);
    let say = |message| v1::SessionRequest { message: Some(message) };
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    let hello = v1::Hello { worker: name, slots, tags, ..Default::default() };
    send.send(say(ToServer::Hello(hello))).await.expect("room");
    let opened = WorkersServiceClient::new(channel).session(ReceiverStream::new(receive)).await;
    let mut incoming = opened.expect("a session").into_inner();
    incoming.next().await.expect("a welcome").expect("a welcome");
    tokio::spawn(async move {
        while let Some(Ok(message)) = incoming.next().await {
            if let Some(FromServer::Assignment(assignment)) = message.message {
                let (ended, of) = (Some(succeeded()), assignment.attempt);
                let report =
                    v1::Report { attempt: of, run_time: Some(duration(1)), ended, output_bytes: 0 };
                drop(send.send(say(ToServer::Report(report))).await);
            }
        }
        // Dropped with the server: as long as it lives, the session does.
        drop(send);
    });
}

async fn start(channel: Channel, yaml: &str) -> String {
    let mut request = start_request(&file(&format!("stages: [s]\njobs:\n{yaml}")));
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

/// The processor time for 500 jobs, of server and workers together.
async fn jobs_of(server: &Server) -> f64 {
    let jobs: String =
        (0..JOBS).map(|n| format!("  j{n}: {{stage: s, command: x, tags: [busy]}}\n")).collect();
    let before = used();
    let run = start(server.connect(), &jobs).await;
    let request = v1::FollowRequest { run, after: 0, follow: true };
    let mut log = Records::new(
        LogServiceClient::new(server.connect()).follow(request).await.expect("a log").into_inner(),
    );
    while log.next().await.expect("the log continues").expect("a record").kind != "run_finished" {}
    used() - before
}

async fn rounds_of(server: &Server) -> f64 {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(jobs_of(server).await);
    }
    median(rounds)
}

async fn open() -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sled:{}", folder.path().join("store").display());
    let server = Server::open(&url, Arc::new(SystemClock)).await.expect("a server");
    for n in 0..4 {
        session(server.connect(), format!("busy{n}"), &["busy"], 4).await;
    }
    (server, folder)
}

async fn driven() {
    println!("\n{JOBS} jobs, a server and its workers in one process, durable: CPU");
    let (server, _folder) = open().await;
    jobs_of(&server).await;
    let alone = rounds_of(&server).await;
    row("alone", alone, alone);
    server.close().await;

    let (server, _folder) = open().await;
    let idle = start(server.connect(), "  w: {stage: s, command: x, tags: [nobody]}\n").await;
    let mut streams = Vec::new();
    for _ in 0..FOLLOWERS / PER_CONNECTION {
        let channel = server.connect();
        for _ in 0..PER_CONNECTION {
            let request = v1::FollowRequest { run: idle.clone(), after: 0, follow: true };
            let stream =
                LogServiceClient::new(channel.clone()).follow(request).await.expect("a log");
            streams.push(tokio::spawn(async move {
                let mut stream = stream.into_inner();
                while stream.next().await.is_some() {}
            }));
        }
    }
    jobs_of(&server).await;
    let took = rounds_of(&server).await;
    row(&format!("beside {FOLLOWERS} followers of an idle run"), took, alone);
    for _ in 0..WAITING_RUNS {
        start(server.connect(), "  w: {stage: s, command: x, tags: [nobody]}\n").await;
    }
    let took = rounds_of(&server).await;
    row(&format!("and {WAITING_RUNS} waiting runs"), took, alone);
    for n in 0..IDLE_WORKERS / PER_CONNECTION {
        let channel = server.connect();
        for m in 0..PER_CONNECTION {
            session(channel.clone(), format!("idle{n}-{m}"), &["idle"], 1).await;
        }
    }
    let took = rounds_of(&server).await;
    row(&format!("and {IDLE_WORKERS} idle workers"), took, alone);
    server.close().await;
}
