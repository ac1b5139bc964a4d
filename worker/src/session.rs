//! A worker as its caller sees it: who it is, how it is told to stop, and how it ended. What it
//! does in between is decided in `protocol` and carried out by `driver`.

use std::time::Duration;

use tonic::{Status, transport::Channel};
use towpath_proto::v1::workers_service_client::WorkersServiceClient;

use crate::{
    Adopted, AttemptsDir, AttemptsError, Environment,
    driver::Driver,
    environment::shut_out_jobs,
    options::{Stop, WorkerOptions},
    protocol::{ANSWER_WITHIN, EndReason},
    runner::Runner,
    source_cache::{SOURCES_BYTES_MAX, SourceCache},
    workspace::Workspaces,
};

/// Why a worker stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its own files cannot be used.
    #[error(transparent)]
    Attempts(#[from] AttemptsError),
    /// The server ended the session.
    #[error("the server ended the session: {}", .0.message())]
    Session(#[from] Box<Status>),
    /// It was to stop, and no server took the last of its reports.
    #[error("no server accepted the reports of {attempts} ended attempts within {} s: {}", .within.as_secs(), .status.message())]
    Unreported {
        /// How many attempts it still holds.
        attempts: usize,
        /// How long it waited.
        within: Duration,
        /// Why there was no session.
        status: Box<Status>,
    },
}

/// What became of the attempt that was recorded last, once a worker has stopped.
pub type WorkResult = Result<Option<Adopted>, WorkerError>;

/// Works until told to stop, and then until everything that ran is reported and recorded.
pub async fn work(channel: Channel, options: WorkerOptions, stop: Stop) -> WorkResult {
    if let Err(error) = shut_out_jobs() {
        tracing::warn!(%error, "jobs can read the environment of this worker");
    }
    let attempts =
        AttemptsDir::open_when_free(&options.attempts, &Environment::of_process()).await?;
    let unusable = |source| AttemptsError::Unusable { folder: attempts.sources(), source };
    let workspaces = Workspaces {
        sources: SourceCache::open(&attempts.sources(), SOURCES_BYTES_MAX).map_err(unusable)?,
        channel: channel.clone(),
        bearer: options.bearer.clone(),
        worker: options.name.clone(),
        file_remotes: options.file_remotes,
        keep_work: options.keep_work,
    };
    let within = options.stay.report_within.unwrap_or_default();
    let answer_within = options.stay.answer_within.unwrap_or(ANSWER_WITHIN);
    let runner = Runner::new(attempts, workspaces);
    let client = WorkersServiceClient::new(channel);
    let mut driver = Driver::new(client, options, answer_within, stop, runner);
    match driver.run().await {
        EndReason::Done => Ok(driver.last()),
        EndReason::Refused | EndReason::Disconnected => Err(Box::new(driver.status()).into()),
        EndReason::Unreported { attempts } => {
            let status = Box::new(driver.status());
            Err(WorkerError::Unreported { attempts, within, status })
        }
    }
}
