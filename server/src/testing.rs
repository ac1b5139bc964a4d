//! For tests: the runs of a store in memory, without anything that gives out their jobs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    decide::{Command, CreateRun, Ended, LeaseJob, ReportJob},
    ids::{Actor, Attempt, Digest, RunId, WorkerName},
    job::JobState,
    plan::{JobPlan, Plan},
    run::LockUsage,
    scheduler::{Effect, Scheduler},
    time::Timestamp,
    views::List,
};
use towpath_storage::{DiskSpace, MemoryStore};

use crate::{
    SetClock,
    open_log::OpenLog,
    runs::RunHooks,
    runs::Runs,
    scheduler_driver::SchedulerDriver,
    shared_scheduler::SharedScheduler,
    streams::{Loaded, Queued, Streams},
};

pub(crate) const WORKER: &str = "w";

pub(crate) struct Fixture {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) runs: Arc<Runs>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with_lease(Duration::from_secs(30))
    }

    fn with_lease(lease: Duration) -> Self {
        Self::build(lease).0
    }

    /// The same, with a driver of its scheduler, until the runtime ends.
    pub(crate) fn driven(lease: Duration) -> (Self, Arc<SchedulerDriver>) {
        let (fixture, work) = Self::build(lease);
        let scheduler = Arc::clone(&fixture.runs.hooks.scheduler);
        let driver = Arc::new(SchedulerDriver::new(Arc::clone(&fixture.runs), scheduler));
        tokio::spawn(Arc::clone(&driver).run(work, CancellationToken::new()));
        (fixture, driver)
    }

    fn build(lease: Duration) -> (Self, mpsc::UnboundedReceiver<Effect>) {
        let (scheduler, work) = SharedScheduler::new(lease);
        let store = Arc::new(MemoryStore::default());
        let clock = Arc::new(SetClock::at(Timestamp(1_000)));
        let log = OpenLog::new(Arc::<MemoryStore>::clone(&store), clock, PathBuf::new(), 0);
        let hooks = RunHooks::new(scheduler, DiskSpace::of(Path::new("/")));
        let runs = Streams::with_list(&Arc::new(log), hooks, List::default());
        (Self { store, runs }, work)
    }

    /// How many jobs a worker could begin now.
    pub(crate) fn wanted(&self) -> u64 {
        let wanted = self.runs.hooks.scheduler.inspect(Scheduler::wanted);
        wanted.values().map(|(pending, _)| pending).sum()
    }

    /// A run of these jobs; as many as may run are leased.
    pub(crate) async fn begins(&self, id: &str, jobs: Vec<JobPlan>) -> RunId {
        self.begins_as(creation(id, jobs)).await
    }

    /// As [`Fixture::begins`], of a run that is created like this.
    pub(crate) async fn begins_as(&self, create: CreateRun) -> RunId {
        let (run, ana) = (create.run.clone(), Actor::human("ana"));
        self.runs.execute(&run, Command::Create(create), &ana).await.unwrap();
        while self.queues(&run, lease()).await.done.await.unwrap().first > 0 {}
        run
    }

    pub(crate) async fn queues(&self, run: &RunId, command: Command) -> Queued {
        self.runs.queue(run, &[command], &Actor::worker(WORKER)).await.unwrap()
    }

    pub(crate) async fn state(&self, run: &RunId, job: &str) -> JobState {
        let state = |loaded: &Loaded| loaded.state.job(job).unwrap().state.clone();
        self.runs.read_durable(run, state).await.unwrap()
    }
}

/// A run of these jobs, to be created.
pub(crate) fn creation(id: &str, jobs: Vec<JobPlan>) -> CreateRun {
    let plan = Plan { pipeline: "p".to_owned(), stages: vec!["s".into()], jobs, timeout_ms: None };
    CreateRun {
        run: id.into(),
        file: "towpath.yml".to_owned(),
        folder: String::new(),
        file_sha256: Digest([1; 32]),
        plan,
        parallelism: 4,
        gates_preapproved: false,
        traceparent: None,
        idempotency_key: None,
        source: None,
        requester: towpath_engine::gate::Identity::default(),
        authors: None,
    }
}

pub(crate) fn job(name: &str, needs: &[&str]) -> JobPlan {
    let mut job = JobPlan::new(name, "s", "true");
    job.needs = needs.iter().map(|need| (*need).into()).collect();
    job
}

pub(crate) fn lease() -> Command {
    let worker = WorkerName::from(WORKER);
    Command::Lease(LeaseJob {
        worker,
        tags: Vec::new(),
        lease_ms: 1,
        busy: LockUsage::new(),
        only: None,
    })
}

pub(crate) fn success(job: &str) -> Command {
    let worker = WorkerName::from(WORKER);
    let ended = Ended::Succeeded { outputs: BTreeMap::new(), artifacts: Vec::new() };
    let (job, attempt) = (job.into(), Attempt(1));
    Command::Report(ReportJob { job, attempt, worker, ended, ran_ms: 1, captured_output: None })
}
