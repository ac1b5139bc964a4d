//! A run as one kind of stream.

use super::Run;
use crate::{
    aggregate::{Aggregate, Event, IllegalEvent},
    decide::{Command, decide},
    event::{Fact, RunEvent},
    ids::{Actor, Blob, RunId},
    refusal::Refusal,
    source::{Origin, Source},
    time::Timestamp,
    views::RunSummary,
};

impl Event for RunEvent {
    fn kind(&self) -> &'static str {
        Self::kind(self)
    }

    fn subject(&self) -> String {
        self.job().map_or_else(|| self.kind().to_owned(), |job| format!("job `{job}`"))
    }
}

impl Aggregate for Run {
    const KIND: &'static str = "run";
    type Id = RunId;
    type Event = RunEvent;
    type Command = Command;
    type Summary = RunSummary;

    fn decide(
        &self,
        command: &Command,
        by: &Actor,
        now: Timestamp,
    ) -> Result<Vec<RunEvent>, Refusal> {
        decide(self, command, by, now)
    }

    fn evolve(&mut self, fact: &Fact) -> Result<(), IllegalEvent> {
        Self::evolve(self, fact)
    }

    fn consequence(&self) -> Option<RunEvent> {
        Self::consequence(self)
    }

    fn newest_at(&self) -> Timestamp {
        Self::newest_at(self)
    }

    fn is_idle(&self) -> bool {
        !self.phase().is_live()
    }

    fn changes_idle(event: &RunEvent) -> bool {
        match event {
            RunEvent::RunFinished { .. }
            | RunEvent::RunStarted {}
            | RunEvent::RunResumed {}
            | RunEvent::JobsInvalidated { .. }
            | RunEvent::JobRetried { .. }
            | RunEvent::PlanReplaced { .. } => true,
            RunEvent::RunCreated { .. }
            | RunEvent::JobsPlanned { .. }
            | RunEvent::ConditionEvaluated { .. }
            | RunEvent::GateReached { .. }
            | RunEvent::GateApproved { .. }
            | RunEvent::GateVoided { .. }
            | RunEvent::GateRejected { .. }
            | RunEvent::JobLeased { .. }
            | RunEvent::JobSucceeded { .. }
            | RunEvent::JobAttemptFailed { .. }
            | RunEvent::JobFailed { .. }
            | RunEvent::JobCancelled { .. }
            | RunEvent::JobLost { .. }
            | RunEvent::JobSkipped { .. }
            | RunEvent::RunAborted { .. }
            | RunEvent::RunCancelRequested { .. }
            | RunEvent::RunTimedOut {}
            | RunEvent::JobImported { .. } => false,
        }
    }

    fn to_snapshot(&self) -> Vec<u8> {
        Self::to_snapshot(self)
    }

    fn from_snapshot(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Self::from_snapshot(bytes)
    }

    fn memory_bytes(&self) -> usize {
        Self::memory_bytes(self)
    }

    fn summary(&self) -> Option<RunSummary> {
        RunSummary::of(self)
    }

    fn blobs(&self) -> Vec<(String, Blob)> {
        let mut all = Vec::new();
        let source = self.header().and_then(|header| header.source.as_ref());
        if let Some(Source { origin: Origin::Bundle(bundle), .. }) = source {
            all.push(("its bundle".to_owned(), *bundle));
        }
        for job in self.jobs() {
            let files = job.artifacts.iter().map(|artifact| artifact.blob);
            let name = || format!("job `{}`", job.plan.name);
            all.extend(job.captured_output.into_iter().chain(files).map(|blob| (name(), blob)));
        }
        all
    }
}
