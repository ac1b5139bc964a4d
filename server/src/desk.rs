//! For tests: the runs of a store in memory, without anything that gives out their jobs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use towpath_engine::{
    decide::{Command, CreateRun, Ended, LeaseJob, ReportJob},
    ids::{Actor, Attempt, Digest, RunId, WorkerName},
    job::JobState,
    plan::{JobPlan, Plan},
    run::Busy,
    time::Timestamp,
};
use towpath_storage::{DiskSpace, MemoryStore};

use crate::{
    SetClock,
    run_list::RunList,
    runs::{Loaded, Queued, Runs},
};

pub(crate) const WORKER: &str = "w";

pub(crate) struct Desk {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) runs: Arc<Runs>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let clock = Arc::new(SetClock::at(Timestamp(1_000)));
        let runs = Runs::new(
            Arc::<MemoryStore>::clone(&store),
            clock,
            PathBuf::new(),
            DiskSpace::of(Path::new("/")),
            RunList::default(),
        );
        Self { store, runs: Arc::new(runs) }
    }

    /// A run of these jobs; as many as may run are leased.
    pub(crate) async fn begins(&self, id: &str, jobs: Vec<JobPlan>) -> RunId {
        let run = RunId::from(id);
        let plan =
            Plan { pipeline: "p".to_owned(), stages: vec!["s".into()], jobs, timeout_ms: None };
        let create = CreateRun {
            run: run.clone(),
            file: "towpath.yml".to_owned(),
            folder: String::new(),
            file_sha256: Digest([1; 32]),
            plan,
            parallelism: 4,
            gates_preapproved: false,
            traceparent: None,
            idempotency_key: None,
            source: None,
            requester: towpath_engine::gate::Standing::default(),
            authors: None,
        };
        let ana = Actor::human("ana");
        self.runs.execute(&run, Command::Create(create), &ana).await.unwrap();
        while self.queues(&run, lease()).await.done.await.unwrap().first > 0 {}
        run
    }

    pub(crate) async fn queues(&self, run: &RunId, command: Command) -> Queued {
        self.runs.queue(run, &[command], &Actor::worker(WORKER)).await.unwrap()
    }

    pub(crate) async fn state(&self, run: &RunId, job: &str) -> JobState {
        let state = |loaded: &Loaded| loaded.run.job(job).unwrap().state.clone();
        self.runs.look(run, state).await.unwrap()
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
        busy: Busy::new(),
        only: None,
    })
}

pub(crate) fn success(job: &str) -> Command {
    let worker = WorkerName::from(WORKER);
    let ended = Ended::Succeeded { outputs: BTreeMap::new(), artifacts: Vec::new() };
    let (job, attempt) = (job.into(), Attempt(1));
    Command::Report(ReportJob { job, attempt, worker, ended, ran_ms: 1, log: None })
}
