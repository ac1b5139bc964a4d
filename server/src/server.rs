//! Opens what the server is made of, connects the parts, and closes them in order. Decides nothing.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;
use towpath_engine::code::ErrorCode;
use towpath_storage::{Blobs, Opened, StoreDir, StoreError, StoreUrl, open};

use crate::{
    Access, Clock, CommandError, LEASE_MS, ServeError,
    auth::tokens::Tokens,
    bundles::Bundles,
    check::Doctor,
    demand::DemandWatch,
    local,
    log_reader::LogReader,
    metrics::Metrics,
    open_log::OpenLog,
    output_reads::OutputReads,
    outputs::{Outputs, sweep::sweep_always},
    rpc::{BlobsApi, GatesApi, KedaApi, LogApi, RunsApi, Services, WorkersApi},
    run_commands::RunCommands,
    run_reads::RunReads,
    runs::{RunHooks, Runs},
    scheduler_driver::SchedulerDriver,
    serve::Serving,
    settings::{SettingsHooks, StoredSettings},
    shared_scheduler::SharedScheduler,
    status::store_code,
    streams::Streams,
    telemetry::instruments,
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
    log: Arc<OpenLog>,
    runs: Arc<Runs>,
    scheduler: Arc<SharedScheduler>,
    metrics: Metrics,
    serving: Serving,
    /// Last, so that the owner's lock outlives everything that writes.
    dir: StoreDir,
}

/// What several services share while they are put together.
struct Parts {
    url: StoreUrl,
    log: Arc<OpenLog>,
    runs: Arc<Runs>,
    settings: Arc<StoredSettings>,
    scheduler: Arc<SharedScheduler>,
    driver: Arc<SchedulerDriver>,
    outputs: Arc<Outputs>,
    stop: CancellationToken,
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

    /// As [`Server::open`], with leases that expire after a worker sent nothing for `lease_ms`
    /// milliseconds.
    pub async fn open_with_lease(
        url: &str,
        clock: Arc<dyn Clock>,
        lease_ms: u64,
    ) -> Result<Self, OpenError> {
        let (opened, blobs) = open_store(url, open).await?;
        let Opened { store, dir, url, .. } = opened;
        let log = Arc::new(OpenLog::new(store, clock, dir.snapshots(), dir.fence_base()));
        let (scheduler, work) = SharedScheduler::new(Duration::from_millis(lease_ms));
        let settings = SettingsHooks::new(Arc::clone(&scheduler));
        let settings = Streams::open(&log, settings).await?;
        let runs = RunHooks::new(Arc::clone(&scheduler), dir.disk_space());
        let runs = Streams::open(&log, runs).await?;
        let driver = Arc::new(SchedulerDriver::new(Arc::clone(&runs), Arc::clone(&scheduler)));
        let outputs = Arc::new(Outputs::new(dir.spool(), Arc::new(blobs)));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(timers::run(Arc::clone(&runs), stop.clone()));
        tasks.spawn(Arc::clone(&driver).run(work, stop.clone()));
        // Before any worker connects: a drained one is given nothing.
        settings.load_live().await?;
        // Loaded now, so that the timer knows when they are due, and the scheduler what they want
        // and which worker holds what.
        runs.load_live().await?;
        // Once the runs are there: what belongs to none of their attempts is removed.
        tasks.spawn(sweep_always(Arc::clone(&outputs), Arc::clone(&runs), stop.clone()));
        let parts = Parts { url, log, runs, settings, scheduler, driver, outputs, stop };
        let metrics = parts.metrics();
        let serving = Serving::new(parts.services(), metrics.clone(), parts.stop, tasks);
        serving.set_health(true).await;
        let Parts { log, runs, scheduler, .. } = parts;
        Ok(Self { inner: Arc::new(Inner { log, runs, scheduler, metrics, serving, dir }) })
    }

    /// Serves the connections of `listener`, until the server closes. Answers the address that it
    /// listens on.
    pub fn serve(&self, listener: TcpListener, access: Access) -> Result<SocketAddr, ServeError> {
        let tokens = Tokens::of(self.inner.dir.path());
        self.inner.serving.listen(listener, access, tokens, Arc::clone(&self.inner.log))
    }

    /// A client of this server, over a pipe.
    pub fn connect(&self) -> Channel {
        local::connect(&self.inner.serving)
    }

    /// Listens on the socket in the store's folder, which only its owner may enter.
    pub fn listen_locally(&self) -> io::Result<()> {
        local::listen(&self.inner.serving, &self.socket(), self.inner.dir.path())
    }

    /// Shows the metrics to whatever reads the meters of this process, from now on.
    pub async fn export_metrics(&self) -> Result<(), CommandError> {
        instruments::export(self.inner.metrics.clone()).await
    }

    /// Ends every stream and task, and keeps what makes the next start quick.
    pub async fn close(&self) {
        self.drain(CLOSE_WITHIN).await;
    }

    /// Closes in good order: no new client is sent here, streams end, what was asked is answered.
    /// What is not done after `within` is cut off. Answers whether all of it was done.
    pub async fn drain(&self, within: Duration) -> bool {
        let ended = self.inner.serving.drain(within).await;
        // After the last task: a snapshot of a run that is still decided on would be old at once.
        for kind in self.inner.log.kinds() {
            kind.close().await;
        }
        ended
    }

    /// Does what is due now; for tests whose clock stands still.
    pub async fn tick(&self) {
        timers::tick(&self.inner.runs).await;
        self.inner.scheduler.settle().await;
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

    #[cfg(test)]
    pub(crate) fn runs(&self) -> &Arc<Runs> {
        &self.inner.runs
    }
}

impl Parts {
    fn metrics(&self) -> Metrics {
        let (log, runs) = (Arc::clone(&self.log), Arc::clone(&self.runs));
        Metrics::new(self.url.scheme().to_owned(), log, runs, Arc::clone(&self.scheduler))
    }

    /// The services, each with the parts that it calls.
    fn services(&self) -> Services {
        let (runs, scheduler) = (|| Arc::clone(&self.runs), || Arc::clone(&self.scheduler));
        let (log, outputs) = (|| Arc::clone(&self.log), || Arc::clone(&self.outputs));
        let blobs = || Arc::clone(&self.outputs.blobs);
        let stop = || self.stop.clone();
        let reads = RunReads::new(runs(), scheduler());
        let bundles = Bundles::new(runs(), blobs());
        let commands = RunCommands::new(runs(), bundles.clone());
        let demand = DemandWatch::new(scheduler(), stop());
        let driver = Arc::clone(&self.driver);
        Services {
            runs: RunsApi {
                reads: reads.clone(),
                commands: commands.clone(),
                outputs: OutputReads::new(runs(), outputs(), stop()),
            },
            gates: GatesApi { reads, commands },
            log: LogApi {
                store: self.url.clone(),
                log: log(),
                runs: runs(),
                reader: LogReader::new(log(), stop()),
                doctor: Doctor::new(log(), blobs()),
            },
            workers: WorkersApi {
                sessions: WorkerSessions::new(runs(), scheduler(), driver, outputs(), stop()),
                settings: Arc::clone(&self.settings),
                scheduler: scheduler(),
                demand: demand.clone(),
            },
            blobs: BlobsApi { bundles },
            keda: KedaApi { demand },
        }
    }
}
