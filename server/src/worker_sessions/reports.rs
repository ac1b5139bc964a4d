//! Reports of attempts: what they left is kept first, then how they ended is recorded.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex as SyncMutex},
};

use towpath_engine::{
    decide::Ended,
    event::FailureCause,
    ids::{AttemptId, Blob},
    results,
    scheduler::SessionId,
};
use towpath_storage::StoreError;

use super::{WorkerSessions, parts::RefusedParts};
use crate::{
    bundles::on_disk,
    command_error::CommandError,
    pauses::Pauses,
    scheduler_driver::{Answer, End},
    sync::locked,
    wire::{Reported, WorkerReport},
};

/// What a session knows of attempts that it holds, so that neither is longer than a worker's slots.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) refused: RefusedParts,
    /// The attempts whose reports are being kept and recorded.
    under_way: Arc<SyncMutex<HashSet<AttemptId>>>,
}

/// The report of an attempt is being kept and recorded, as long as this lives.
struct UnderWay {
    all: Arc<SyncMutex<HashSet<AttemptId>>>,
    key: AttemptId,
}

impl UnderWay {
    /// `None`: it is already.
    fn begin(all: &Arc<SyncMutex<HashSet<AttemptId>>>, key: &AttemptId) -> Option<Self> {
        let begun = locked(all).insert(key.clone());
        begun.then(|| Self { all: Arc::clone(all), key: key.clone() })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        locked(&self.all).remove(&self.key);
    }
}

/// What is recorded of a report: a success is a failure if a part was `refused`, or if fewer bytes
/// of output `arrived` than the report counts. Other ends stand as they are.
fn judged(ended: Reported, refused: Option<String>, output_bytes: u64, arrived: u64) -> Reported {
    let missing = (output_bytes > arrived).then(|| {
        format!("it counts {output_bytes} bytes of output, of which {arrived} have arrived")
    });
    // A refused part is the cause of those that are missing.
    match refused.or(missing) {
        Some(why) => ended.unless_invalid(why),
        None => ended,
    }
}

impl WorkerSessions {
    pub(super) async fn take_report(
        &self,
        session: SessionId,
        report: WorkerReport,
        reports: &mut Reports,
    ) -> Result<(), CommandError> {
        let WorkerReport { key, ran_ms, ended, output_bytes } = report;
        if !self.holds(session, &key) {
            return self.driver.answer_unheld(session, &key).await.map(drop);
        }
        // The first is answered. To keep a copy of everything for each of many would let a worker
        // fill the disk by saying one thing often.
        let Some(under_way) = UnderWay::begin(&reports.under_way, &key) else { return Ok(()) };
        let arrived = self.outputs.length(&key);
        let ended = judged(ended, reports.refused.remove(&key), output_bytes, arrived);
        let sessions = self.clone();
        // Beside the session: the disk of one job does not hold up the messages of another.
        tokio::spawn(async move {
            let recorded = sessions.keep_and_record(session, &key, ran_ms, ended, arrived).await;
            drop(under_way);
            if let Err(error) = recorded {
                // The store could not take it now. The worker keeps the report and repeats it in
                // its next session.
                sessions.scheduler.disconnect(session, Some(error));
            }
        });
        Ok(())
    }

    /// Keeps what the attempt left, then has it recorded how it ended: an event names only what is
    /// durable already.
    async fn keep_and_record(
        &self,
        session: SessionId,
        key: &AttemptId,
        ran_ms: u64,
        reported: Reported,
        arrived: u64,
    ) -> Result<(), CommandError> {
        let ended = match reported {
            Reported::Ended(ended) => ended,
            // Its next attempt prints and leaves everything again.
            Reported::Lost(reason) => return self.record(session, key, End::Lost(reason)).await,
        };
        let (captured_output, wrong) = self.keep_patiently(session, key, &ended, arrived).await?;
        let ended = match wrong {
            Some(why) => Ended::Failed(FailureCause::ReportInvalid(why)),
            None => ended,
        };
        self.record(session, key, End::Ended { ended, ran_ms, captured_output }).await
    }

    /// Has it recorded how an attempt ended, and forgets what it left behind only once the attempt
    /// is no longer valid. A session may end while a report is being kept: its worker then continues
    /// from what is there in its next session, and to remove that would lose the output for good.
    async fn record(
        &self,
        session: SessionId,
        key: &AttemptId,
        end: End,
    ) -> Result<(), CommandError> {
        match self.driver.record(session, key, end).await? {
            Answer::Recorded | Answer::Void => self.outputs.forget(key),
            Answer::Unanswered => {}
        }
        Ok(())
    }

    /// Keeps what the attempt left, again and again while the disk has no room for it and the
    /// session lives. To end the session instead would have the worker send everything of all its
    /// attempts anew, which fills the disk further.
    async fn keep_patiently(
        &self,
        session: SessionId,
        key: &AttemptId,
        ended: &Ended,
        arrived: u64,
    ) -> Result<(Option<Blob>, Option<String>), CommandError> {
        let mut pauses = Pauses::default();
        loop {
            let kept = self.keep(key, ended, arrived).await;
            let is_full = matches!(kept, Err(CommandError::Store(StoreError::Full(_))));
            if !is_full || !self.scheduler.inspect(|all| all.is_open(session)) {
                return kept;
            }
            pauses.wait().await;
        }
    }

    /// Keeps what the attempt left. Answers its output, and what is wrong with its artifacts.
    async fn keep(
        &self,
        key: &AttemptId,
        ended: &Ended,
        arrived: u64,
    ) -> Result<(Option<Blob>, Option<String>), CommandError> {
        let output = if arrived == 0 { None } else { self.keep_output(key).await? };
        Ok((output, self.keep_files(key, ended).await?))
    }

    async fn keep_output(&self, key: &AttemptId) -> Result<Option<Blob>, CommandError> {
        let (outputs, key) = (Arc::clone(&self.outputs), key.clone());
        on_disk(move || Ok(outputs.keep(&key)?)).await
    }

    /// Keeps the artifacts of a job that succeeded. Answers what is wrong with them.
    async fn keep_files(
        &self,
        key: &AttemptId,
        ended: &Ended,
    ) -> Result<Option<String>, CommandError> {
        let Ended::Succeeded { outputs, artifacts } = ended else { return Ok(None) };
        if results::problem(outputs, artifacts).is_some() {
            // The engine fails the job for it; there is no use in keeping thousands of files first.
            return Ok(None);
        }
        for artifact in artifacts.clone() {
            let (outputs, key) = (Arc::clone(&self.outputs), key.clone());
            let kept = on_disk(move || {
                let kept = outputs.keep_artifact(&key, &artifact.path, &artifact.blob)?;
                Ok((!kept).then_some(artifact.path))
            });
            if let Some(path) = kept.await? {
                return Ok(Some(format!("artifact `{path}` did not arrive as it was sent")));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tokio_util::sync::CancellationToken;
    use towpath_engine::{ids::Attempt, job::JobState};
    use towpath_proto::v1;
    use towpath_storage::Blobs;

    use super::*;
    use crate::{
        outbox::outbox,
        outputs::Outputs,
        testing::{Fixture, WORKER, job},
        wire::{self, WorkerMessage},
    };

    fn success() -> Reported {
        let (outputs, artifacts) = (BTreeMap::new(), Vec::new());
        Reported::Ended(Ended::Succeeded { outputs, artifacts })
    }

    /// Why the report is invalid, if it is.
    fn why(reported: Reported) -> Option<String> {
        match reported {
            Reported::Ended(Ended::Failed(FailureCause::ReportInvalid(why))) => Some(why),
            Reported::Ended(_) | Reported::Lost(_) => None,
        }
    }

    #[test]
    fn a_success_whose_output_did_not_arrive_is_a_failure() {
        assert_eq!(why(judged(success(), None, 7, 7)), None);
        assert_eq!(why(judged(success(), None, 7, 9)), None, "more came in an earlier session");
        let missing = why(judged(success(), None, 7, 6)).unwrap();
        assert!(missing.contains("7 bytes") && missing.contains("6 have arrived"), "{missing}");
    }

    #[test]
    fn a_refused_part_is_named_before_what_is_missing_because_of_it() {
        let refused = || Some("a part too many".to_owned());
        assert_eq!(why(judged(success(), refused(), 7, 0)), refused());
    }

    #[test]
    fn a_failure_keeps_its_own_cause() {
        let failed = || Reported::Ended(Ended::Failed(FailureCause::ExitCode(3)));
        let ended = judged(failed(), Some("a part too many".to_owned()), 7, 0);
        assert!(matches!(ended, Reported::Ended(Ended::Failed(FailureCause::ExitCode(3)))));
        let lost = judged(Reported::Lost("power".to_owned()), None, 7, 0);
        assert!(matches!(lost, Reported::Lost(why) if why == "power"));
    }

    #[test]
    fn the_report_of_an_attempt_is_kept_once_at_a_time() {
        let (reports, key) = (Reports::default(), |attempt| AttemptId {
            run: "r".into(),
            job: "a".into(),
            attempt: Attempt(attempt),
        });
        let first = UnderWay::begin(&reports.under_way, &key(1));
        assert!(first.is_some() && UnderWay::begin(&reports.under_way, &key(1)).is_none());
        assert!(UnderWay::begin(&reports.under_way, &key(2)).is_some(), "another attempt");
        drop(first);
        assert!(UnderWay::begin(&reports.under_way, &key(1)).is_some());
    }

    #[tokio::test]
    async fn a_full_disk_holds_back_what_needs_it_and_not_the_session() {
        let folder = tempfile::tempdir().unwrap();
        let (fixture, driver) = Fixture::driven(Duration::from_secs(30));
        let run = fixture.begins("r", vec![job("a", &[]), job("b", &[])]).await;
        let id = |job: &str| AttemptId { run: run.clone(), job: job.into(), attempt: Attempt(1) };
        let (printed, other) = (id("a"), id("b"));
        let held = [&printed, &other].map(wire::attempt_message).to_vec();
        let hello = v1::Hello { worker: WORKER.into(), slots: 4, held, ..Default::default() };
        let (outbox, _outgoing) = outbox();
        let (session, delivery) = driver.open(hello, &outbox).await.unwrap();
        let blobs = Arc::new(Blobs::open(&folder.path().join("blobs")).unwrap());
        let outputs = Arc::new(Outputs::new(folder.path().join("spool"), Arc::clone(&blobs)));
        let (runs, scheduler) = (Arc::clone(&fixture.runs), Arc::clone(&driver.scheduler));
        let stop = CancellationToken::new();
        let sessions = WorkerSessions::new(runs, scheduler, driver, Arc::clone(&outputs), stop);
        outputs.write(&printed, 0, b"one\n").unwrap();

        blobs.disk_space().reserve(u64::MAX);
        let (reporting, key) = (sessions.clone(), printed.clone());
        let mut report =
            tokio::spawn(
                async move { reporting.keep_and_record(session, &key, 1, success(), 4).await },
            );
        let patience = Duration::from_millis(300);
        let waits = tokio::time::timeout(patience, &mut report).await;
        assert!(waits.is_err(), "it is held back: {waits:?}");
        sessions.keep_and_record(session, &other, 1, success(), 0).await.unwrap();
        assert_eq!(fixture.state(&run, "b").await, JobState::Succeeded, "needs no room");
        let (writing, content) = (sessions.clone(), b"two\n".as_slice().into());
        let message = WorkerMessage::Output { key: printed.clone(), offset: 4, content };
        let mut part =
            tokio::spawn(
                async move { writing.take(session, message, &mut Reports::default()).await },
            );
        let waits = tokio::time::timeout(patience, &mut part).await;
        assert!(waits.is_err(), "it is held back: {waits:?}");
        blobs.disk_space().reserve(0);

        part.await.unwrap().unwrap();
        report.await.unwrap().unwrap();
        assert_eq!(fixture.state(&run, "a").await, JobState::Succeeded);
        assert!(!delivery.closed.is_cancelled());
    }
}
