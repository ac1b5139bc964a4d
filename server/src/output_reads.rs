//! What jobs printed and the files they left behind, a piece at a time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    aggregate::stream_of,
    codec,
    event::RunEvent,
    ids::{Attempt, AttemptId, Blob, Digest, JobName},
    job::JobState,
    refusal::Refusal,
    run::Run,
};
use towpath_storage::Record;

use crate::{
    blob_pieces::send_blob, command_error::CommandError, outputs::Outputs, runs::Runs,
    streams::Loaded,
};

/// Records read at a time.
const PAGE: usize = 1_024;
/// Longest time after which a follower of a job that prints nothing looks whether it still runs.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Reads what jobs printed and left behind.
#[derive(Clone, Debug)]
pub(crate) struct OutputReads {
    runs: Arc<Runs>,
    outputs: Arc<Outputs>,
    /// Cancelled when the server closes.
    stop: CancellationToken,
}

/// Where the output of an attempt is.
#[derive(Clone, Debug)]
pub(crate) struct FoundOutput {
    key: AttemptId,
    /// The blob, once the attempt has ended.
    kept: Option<Digest>,
}

impl OutputReads {
    pub(crate) fn new(runs: Arc<Runs>, outputs: Arc<Outputs>, stop: CancellationToken) -> Self {
        Self { runs, outputs, stop }
    }

    /// The output of attempt `attempt` of `job`, of its newest attempt if that is 0.
    pub(crate) async fn find(
        &self,
        run: &str,
        job: &str,
        attempt: u32,
    ) -> Result<FoundOutput, CommandError> {
        let id = self.runs.find(run)?;
        let newest = |loaded: &Loaded| {
            let known = loaded.state.job(job).ok_or(Refusal::JobUnknown { job: job.into() })?;
            let running = matches!(&known.state, JobState::Leased(..));
            // While an attempt runs, what is kept is of the attempt before.
            let kept = known.captured_output.filter(|_| !running).map(|blob| blob.sha256);
            Ok::<_, Refusal>((known.attempt, kept))
        };
        // What is shown of an attempt that succeeded must not turn out to be of one that did not.
        let (newest, kept) = self.runs.read_durable(&id, newest).await??;
        let attempt = if attempt == 0 { newest } else { Attempt(attempt) };
        let job = JobName::from(job);
        if attempt > newest {
            return Err(CommandError::AttemptUnknown { job, attempt, newest });
        }
        let key = AttemptId { run: id, job, attempt };
        let kept = if attempt == newest { kept } else { self.older_output(&key).await? };
        Ok(FoundOutput { key, kept })
    }

    /// The output of an attempt that is not the newest stands in the log alone.
    async fn older_output(&self, key: &AttemptId) -> Result<Option<Digest>, CommandError> {
        let mut after = 0;
        // As JSON has it: most reports are of other jobs, and need not be decoded to see that.
        let name = serde_json::to_string(&key.job).unwrap_or_default();
        let may_be = |record: &Record| {
            RunEvent::REPORT_KINDS.contains(&&*record.kind)
                && std::str::from_utf8(&record.bytes).is_ok_and(|text| text.contains(&name))
        };
        loop {
            let stream = stream_of::<Run>(&key.run);
            let page = self.runs.log.store.read(&stream, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(None) };
            after = last.version;
            for record in page.iter().filter(|record| may_be(record)) {
                if let Ok(fact) = codec::decode(&record.bytes)
                    && let Some(blob) = output_in(&fact.event, &key.job, key.attempt)
                {
                    return Ok(Some(blob.sha256));
                }
            }
        }
    }

    /// The file that `job` left behind at `path`.
    pub(crate) async fn artifact(
        &self,
        run: &str,
        job: String,
        path: String,
    ) -> Result<Digest, CommandError> {
        let id = self.runs.find(run)?;
        let of_job = |loaded: &Loaded| {
            let known = loaded.state.job(job.as_str());
            let known = known.ok_or_else(|| Refusal::JobUnknown { job: job.as_str().into() })?;
            let artifact = known.artifacts.iter().find(|artifact| artifact.path == path);
            Ok::<_, Refusal>(artifact.map(|artifact| artifact.blob.sha256))
        };
        let blob = self.runs.read_durable(&id, of_job).await??;
        blob.ok_or(CommandError::ArtifactUnknown { job, path })
    }

    /// Sends what a blob holds.
    pub(crate) async fn send_blob(
        &self,
        sha256: &Digest,
        send: &mpsc::Sender<Result<Bytes, CommandError>>,
    ) {
        send_blob(&self.outputs.blobs, sha256, 0, send).await;
    }

    /// Sends what an attempt has printed, and more while it runs to a client that asks to `follow`.
    pub(crate) async fn send(
        &self,
        found: &FoundOutput,
        follow: bool,
        send: &mpsc::Sender<Result<Bytes, CommandError>>,
    ) {
        match &found.kept {
            Some(blob) => self.send_blob(blob, send).await,
            None => self.send_growing(&found.key, follow, send).await,
        }
    }

    async fn send_growing(
        &self,
        key: &AttemptId,
        follow: bool,
        send: &mpsc::Sender<Result<Bytes, CommandError>>,
    ) {
        let mut growing = self.outputs.watch(key);
        let mut offset = 0;
        loop {
            growing.read_durable();
            loop {
                let piece = self.outputs.read(key, offset).unwrap_or_default();
                if piece.is_empty() {
                    break;
                }
                offset += piece.len() as u64;
                if send.send(Ok(piece.into())).await.is_err() {
                    return;
                }
            }
            if !follow || !self.is_running(key).await {
                // What came between the last look and the end is in the blob.
                let found = self.find(key.run.as_str(), key.job.as_str(), key.attempt.0).await;
                if let Ok(FoundOutput { kept: Some(blob), .. }) = found {
                    send_blob(&self.outputs.blobs, &blob, offset, send).await;
                }
                return;
            }
            tokio::select! {
                () = send.closed() => return,
                () = self.stop.cancelled() => return,
                // The end of this job is never recorded, and would be waited for without end.
                () = self.runs.log.stopped.cancelled() => {
                    drop(send.send(Err(self.runs.log.why_stopped().await)).await);
                    return;
                }
                () = growing.changed() => {}
                // A job that prints nothing ends without a sign here.
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn is_running(&self, key: &AttemptId) -> bool {
        let leased = |loaded: &Loaded| {
            let job = loaded.state.job(key.job.as_str());
            job.is_some_and(
                |job| matches!(&job.state, JobState::Leased(held, _) if *held == key.attempt),
            )
        };
        // An end that is not durable may never have been.
        self.runs.read_durable(&key.run, leased).await.unwrap_or(false)
    }
}

/// The output that `event` names, if it ends this attempt of this job.
fn output_in(event: &RunEvent, job: &JobName, attempt: Attempt) -> Option<Blob> {
    let (reported, captured_output) = event.reported()?;
    captured_output.filter(|_| reported == attempt && event.job() == Some(job))
}
