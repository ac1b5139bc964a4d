//! Everything the server owns, opened and closed as one.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::server::HealthReporter;
use towpath_engine::code::ErrorCode;
use towpath_storage::{Blobs, Opened, StoreDir, StoreError, StoreUrl, open};

use crate::{
    Clock, CommandError, LEASE_MS,
    bundles::Bundles,
    check::Doctor,
    demand::DemandWatch,
    log_reader::LogReader,
    open_log::OpenLog,
    output_reads::OutputReads,
    outputs::{Outputs, sweep::sweep_always},
    run_commands::RunCommands,
    run_reads::RunReads,
    runs::{RunHooks, Runs},
    scheduler_driver::SchedulerDriver,
    settings::{SettingsHooks, StoredSettings},
    shared_scheduler::SharedScheduler,
    status::store_code,
    streams::Streams,
    timers,
    worker_sessions::WorkerSessions,
};

/// Why a store could not be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the log says.
    #[error(transparent)]
    Log(#[from] CommandError),
}

impl OpenError {
    /// The stable code that scripts may match on.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Store(error) => store_code(error),
            Self::Log(error) => error.code(),
        }
    }
}

/// A store, and all that serves it. Cheap to clone; the last clone closes the store.
#[derive(Clone, Debug)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    url: StoreUrl,
    log: Arc<OpenLog>,
    runs: Arc<Runs>,
    settings: Arc<StoredSettings>,
    driver: Arc<SchedulerDriver>,
    run_reads: RunReads,
    run_commands: RunCommands,
    outputs: Arc<Outputs>,
    health: HealthReporter,
    stop: CancellationToken,
    /// Ends connections that do not end by themselves.
    cut: CancellationToken,
    tasks: TaskTracker,
    /// Last, so that the owner's lock outlives everything that writes.
    dir: StoreDir,
}

/// How long connections may take to end when a server closes.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// Opens the store at `url` by `open`, and its blobs, on a thread that may block.
pub(crate) async fn open_store(
    url: &str,
    open: fn(&str) -> Result<Opened, StoreError>,
) -> Result<(Opened, Blobs), StoreError> {
    let url = url.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        let opened = open(&url)?;
        let blobs = Blobs::open(&opened.dir.blobs())?;
        Ok((opened, blobs))
    });
    opened.await.map_err(|_| StoreError::Closed)?
}

impl Server {
    /// Opens the store at `url` and begins to serve it: what is due is done, and workers that
    /// connect are given what is ready.
    pub async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::open_with_lease(url, clock, LEASE_MS).await
    }

    /// As [`Server::open`], with leases that lapse after a worker was silent for `lease_ms`
    /// milliseconds.
    pub async fn open_with_lease(
        url: &str,
        clock: Arc<dyn Clock>,
        lease_ms: u64,
    ) -> Result<Self, OpenError> {
        let (opened, blobs) = open_store(url, open).await?;
        let (snapshots, fence_base) = (opened.dir.snapshots(), opened.dir.fence_base());
        let log = Arc::new(OpenLog::new(opened.store, clock, snapshots, fence_base));
        let (scheduler, work) = SharedScheduler::new(Duration::from_millis(lease_ms));
        let settings = SettingsHooks::new(Arc::clone(&scheduler));
        let settings = Streams::open(&log, settings).await?;
        let hooks = RunHooks::new(scheduler, opened.dir.disk_space());
        let runs = Streams::open(&log, hooks).await?;
        let driver = Arc::new(SchedulerDriver::new(Arc::clone(&runs)));
        let outputs = Arc::new(Outputs::new(opened.dir.spool(), Arc::new(blobs)));
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let (health, tasks) = (HealthReporter::new(), TaskTracker::new());
        tasks.spawn(timers::run(Arc::clone(&runs), stop.clone()));
        tasks.spawn(Arc::clone(&driver).run(work, stop.clone()));
        // Before any worker connects: a drained one is given nothing.
        settings.load_live().await?;
        // Loaded now, so that the timer knows when they are due, and the scheduler what they want
        // and who holds what.
        runs.load_live().await?;
        // Once the runs are there: what belongs to none of their attempts goes.
        tasks.spawn(sweep_always(Arc::clone(&outputs), Arc::clone(&runs), stop.clone()));
        let (url, dir) = (opened.url, opened.dir);
        let run_reads = RunReads::new(Arc::clone(&runs), Arc::clone(&runs.hooks.scheduler));
        let bundles = Bundles::new(Arc::clone(&runs), Arc::clone(&outputs.blobs));
        let run_commands = RunCommands::new(Arc::clone(&runs), bundles);
        let inner = Inner {
            url,
            log,
            runs,
            settings,
            driver,
            run_reads,
            run_commands,
            outputs,
            health,
            stop,
            cut,
            tasks,
            dir,
        };
        let server = Self { inner: Arc::new(inner) };
        server.set_health(true).await;
        Ok(server)
    }

    /// Ends every stream and task, and keeps what makes the next start quick.
    pub async fn close(&self) {
        self.drain(CLOSE_WITHIN).await;
    }

    /// Closes in good order: nobody new is sent here, streams end, what was asked is answered. What
    /// is not done after `within` is cut off. Answers whether all of it was done.
    pub async fn drain(&self, within: Duration) -> bool {
        self.set_health(false).await;
        self.inner.stop.cancel();
        self.inner.tasks.close();
        let ended = tokio::time::timeout(within, self.inner.tasks.wait()).await;
        self.inner.cut.cancel();
        self.inner.tasks.wait().await;
        for kind in self.inner.log.kinds() {
            kind.close().await;
        }
        ended.is_ok()
    }

    /// Does what is due now; for tests whose clock stands still.
    pub async fn tick(&self) {
        timers::tick(&self.inner.runs).await;
        self.inner.runs.hooks.scheduler.settle().await;
    }

    /// The store's own folder.
    pub fn folder(&self) -> PathBuf {
        self.inner.dir.path().to_owned()
    }

    /// Cancelled when the store takes nothing any more, because a commit failed.
    pub fn stopped(&self) -> &CancellationToken {
        &self.inner.log.stopped
    }

    /// Where other programs of this machine reach the server.
    pub fn socket(&self) -> PathBuf {
        self.inner.dir.socket()
    }

    pub(crate) fn url(&self) -> &StoreUrl {
        &self.inner.url
    }

    pub(crate) fn log(&self) -> &Arc<OpenLog> {
        &self.inner.log
    }

    pub(crate) fn settings(&self) -> &Arc<StoredSettings> {
        &self.inner.settings
    }

    pub(crate) fn runs(&self) -> &Arc<Runs> {
        &self.inner.runs
    }

    pub(crate) fn scheduler(&self) -> &Arc<SharedScheduler> {
        &self.inner.runs.hooks.scheduler
    }

    /// The log as it grows, for those who follow it.
    pub(crate) fn log_reader(&self) -> LogReader {
        LogReader::new(Arc::clone(self.log()), self.stopping().clone())
    }

    /// What checks the whole store.
    pub(crate) fn doctor(&self) -> Doctor {
        Doctor::new(Arc::clone(self.log()), Arc::clone(&self.outputs().blobs))
    }

    /// Reads of runs.
    pub(crate) fn run_reads(&self) -> &RunReads {
        &self.inner.run_reads
    }

    /// Commands on runs.
    pub(crate) fn run_commands(&self) -> &RunCommands {
        &self.inner.run_commands
    }

    /// The bundles of runs.
    pub(crate) fn bundles(&self) -> Bundles {
        Bundles::new(Arc::clone(self.runs()), Arc::clone(&self.outputs().blobs))
    }

    /// What jobs printed and left behind.
    pub(crate) fn output_reads(&self) -> OutputReads {
        let (runs, outputs) = (Arc::clone(self.runs()), Arc::clone(&self.inner.outputs));
        OutputReads::new(runs, outputs, self.stopping().clone())
    }

    /// The sessions of workers.
    pub(crate) fn worker_sessions(&self) -> WorkerSessions {
        let (runs, scheduler) = (Arc::clone(self.runs()), Arc::clone(self.scheduler()));
        let (driver, outputs) = (Arc::clone(&self.inner.driver), Arc::clone(&self.inner.outputs));
        WorkerSessions::new(runs, scheduler, driver, outputs, self.stopping().clone())
    }

    /// The demand for workers, for those who follow it.
    pub(crate) fn demand(&self) -> DemandWatch {
        DemandWatch::new(Arc::clone(self.scheduler()), self.stopping().clone())
    }

    pub(crate) fn outputs(&self) -> &Outputs {
        &self.inner.outputs
    }

    pub(crate) fn health(&self) -> &HealthReporter {
        &self.inner.health
    }

    /// Cancelled when connections are cut off.
    pub(crate) fn cutting(&self) -> &CancellationToken {
        &self.inner.cut
    }

    /// Cancelled when everything is to come to its end.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.inner.stop
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }
}
