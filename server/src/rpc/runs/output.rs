//! What jobs printed and the files they left behind, a piece at a time.

use tokio::sync::mpsc;
use tonic::Status;
use towpath_engine::{
    aggregate::stream_of,
    event::RunEvent,
    ids::{Attempt, Digest},
    job::JobState,
    refusal::Refusal,
    run::Run,
};
use towpath_proto::{streams::Piece, v1};
use towpath_storage::Record;

use crate::{Server, command_error::CommandError, outputs::Key, status, streams::Loaded, wire};

/// Bytes of output in one message.
const CHUNK_BYTES: u64 = 64 * 1024;

impl Server {
    /// Which attempt's output is asked for, and the blob if it is kept already.
    pub(super) async fn output_of(
        &self,
        run: &str,
        job: &str,
        attempt: u32,
    ) -> Result<(Key, Option<Digest>), CommandError> {
        let id = self.find(run)?;
        let newest = |loaded: &Loaded| {
            let known = loaded.state.job(job).ok_or(Refusal::JobUnknown { job: job.into() })?;
            let running = matches!(&known.state, JobState::Leased(..));
            let kept = known.captured_output.filter(|_| !running).map(|blob| blob.sha256);
            Ok::<_, Refusal>((known.attempt, kept))
        };
        // What is shown of an attempt that succeeded must not turn out to be of one that did not.
        let (newest, kept) = self.runs().read_durable(&id, newest).await??;
        let attempt = if attempt == 0 { newest } else { Attempt(attempt) };
        let job = towpath_engine::ids::JobName::from(job);
        if attempt > newest {
            return Err(CommandError::AttemptUnknown { job, attempt, newest });
        }
        let key = Key { run: id, job, attempt };
        let kept = if attempt == newest { kept } else { self.older_output(&key).await? };
        Ok((key, kept))
    }

    /// The output of a try that is not the newest stands in the log alone.
    async fn older_output(&self, key: &Key) -> Result<Option<Digest>, CommandError> {
        let mut after = 0;
        // As JSON has it: most reports are of other jobs, and need not be decoded to see that.
        let name = serde_json::to_string(&key.job).unwrap_or_default();
        let may_be = |record: &Record| {
            RunEvent::REPORT_KINDS.contains(&&*record.kind)
                && std::str::from_utf8(&record.bytes).is_ok_and(|text| text.contains(&name))
        };
        loop {
            let stream = stream_of::<Run>(&key.run);
            let page = self.runs().log.store.read(&stream, after, 1_024).await?;
            let Some(last) = page.last() else { return Ok(None) };
            after = last.version;
            for record in page.iter().filter(|record| may_be(record)) {
                if let Ok(fact) = towpath_engine::codec::decode(&record.bytes)
                    && let Some(blob) = wire::output_in(&fact.event, &key.job, key.attempt)
                {
                    return Ok(Some(blob.sha256));
                }
            }
        }
    }

    pub(super) async fn artifact(
        &self,
        request: v1::ReadArtifactRequest,
    ) -> Result<Digest, CommandError> {
        let v1::ReadArtifactRequest { run, job, path } = request;
        let id = self.find(&run)?;
        let of_job = |loaded: &Loaded| {
            let known = loaded.state.job(job.as_str());
            let known = known.ok_or_else(|| Refusal::JobUnknown { job: job.as_str().into() })?;
            Ok::<_, Refusal>(wire::artifact_of(known, &path).map(|blob| blob.sha256))
        };
        let blob = self.runs().read_durable(&id, of_job).await??;
        blob.ok_or(CommandError::ArtifactUnknown { job, path })
    }

    /// Sends what a blob holds from `offset` on.
    pub(in crate::rpc) async fn send_blob<P: Piece>(
        &self,
        sha256: &Digest,
        mut offset: u64,
        send: &mpsc::Sender<Result<P, Status>>,
    ) {
        loop {
            let range = offset..offset + CHUNK_BYTES;
            let piece = self.outputs().blobs.get(&sha256.0, range);
            let chunk = match piece {
                Ok(piece) if piece.is_empty() => return,
                Ok(piece) => {
                    offset += piece.len() as u64;
                    Ok(P::of(piece.into()))
                }
                Err(error) => Err(status::of(error.into())),
            };
            let failed = chunk.is_err();
            if send.send(chunk).await.is_err() || failed {
                return;
            }
        }
    }

    /// Sends what a job has printed so far, and goes on while it runs if asked to `follow`.
    pub(super) async fn send_growing(
        &self,
        key: &Key,
        follow: bool,
        send: &mpsc::Sender<Result<v1::ReadOutputResponse, Status>>,
    ) {
        let mut growing = self.outputs().watch(key);
        let mut offset = 0;
        loop {
            growing.read_durable();
            loop {
                let piece = self.outputs().read(key, offset).unwrap_or_default();
                if piece.is_empty() {
                    break;
                }
                offset += piece.len() as u64;
                let chunk = v1::ReadOutputResponse { content: piece.into() };
                if send.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
            if !follow || !self.is_running(key).await {
                // What came between the last look and the end is in the blob.
                if let Ok((_, Some(blob))) =
                    self.output_of(key.run.as_str(), key.job.as_str(), key.attempt.0).await
                {
                    self.send_blob(&blob, offset, send).await;
                }
                return;
            }
            tokio::select! {
                () = send.closed() => return,
                () = self.stopping().cancelled() => return,
                // The end of this job is never recorded, and would be waited for without end.
                () = self.stopped().cancelled() => {
                    let why = self.log().why_stopped().await;
                    drop(send.send(Err(status::of(why))).await);
                    return;
                }
                () = growing.changed() => {}
                // A job that prints nothing ends without a sign here.
                () = tokio::time::sleep(std::time::Duration::from_millis(250)) => {}
            }
        }
    }

    async fn is_running(&self, key: &Key) -> bool {
        let leased = |loaded: &Loaded| {
            let job = loaded.state.job(key.job.as_str());
            job.is_some_and(
                |job| matches!(&job.state, JobState::Leased(held, _) if *held == key.attempt),
            )
        };
        // An end that is told and not durable may never have been.
        self.runs().read_durable(&key.run, leased).await.unwrap_or(false)
    }
}
