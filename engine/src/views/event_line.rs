//! What one line about an event says: its kind, its job, and details by name. How a line looks is
//! up to the client.

use crate::{
    event::{Fact, FailureCause, ImportedResult, RunEvent, SkipCause},
    ids::{Digest, JobName, StageName, WorkerName},
    run::Run,
    time::Timestamp,
};

/// One line about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLine {
    /// The word for the kind of the event.
    pub kind: &'static str,
    /// The job that it is about, with its stage. `None`: it is about the run.
    pub job: Option<(StageName, JobName)>,
    /// What else is known, by name, in the order of the line.
    pub details: Vec<(&'static str, DetailValue)>,
}

/// The value of one detail. How it is written depends on what it is, and not on the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetailValue {
    /// A number.
    Number(u64),
    /// One of a few fixed words.
    Word(&'static str),
    /// A name or an id.
    Name(String),
    /// What a person, a program or a file says: it may hold any character.
    Text(String),
    /// A duration, in milliseconds.
    Duration(u64),
    /// A moment.
    Time(Timestamp),
    /// A digest.
    Digest(Digest),
    /// A worker.
    Worker(WorkerName),
    /// Why an attempt failed.
    Failure(FailureCause),
    /// How another tool recorded the end of a job.
    Imported(ImportedResult),
}

/// The line for `fact`, which `run` has taken in. `None`: nothing that a reader needs.
pub fn event_line(run: &Run, fact: &Fact) -> Option<EventLine> {
    let details = details(run, fact)?;
    let job = fact.event.job().and_then(|job| run.job(job.as_str()));
    let job = job.map(|job| (job.plan.stage.clone(), job.plan.name.clone()));
    Some(EventLine { kind: fact.event.kind(), job, details })
}

#[expect(clippy::too_many_lines, reason = "one table: what is said of each kind of event")]
fn details(run: &Run, fact: &Fact) -> Option<Vec<(&'static str, DetailValue)>> {
    use DetailValue as V;
    let count = |count: &u32| V::Number(u64::from(*count));
    let by = || ("by", V::Name(fact.by.to_string()));
    let attempt = |attempt: &crate::ids::Attempt| ("attempt", count(&attempt.0));
    let took = |ms: &u64| ("dur", V::Duration(*ms));
    let digest = |digest: &Digest| ("approval_digest", V::Digest(*digest));
    Some(match &fact.event {
        RunEvent::RunCreated { run, pipeline, jobs, parallelism, source, .. } => {
            let mut details = vec![
                ("run", V::Name(run.to_string())),
                ("pipeline", V::Name(pipeline.clone())),
                ("jobs", count(jobs)),
                ("parallelism", count(parallelism)),
                by(),
            ];
            let commit = source.as_ref().map(|source| ("commit", V::Name(source.commit.clone())));
            details.extend(commit);
            details
        }
        // Both always follow the creation, whose line has the numbers.
        RunEvent::JobsPlanned { .. } | RunEvent::RunStarted {} => return None,
        RunEvent::ConditionEvaluated { holds, .. } => {
            vec![("holds", V::Word(if *holds { "true" } else { "false" }))]
        }
        RunEvent::GateReached { approval_digest, .. } => vec![digest(approval_digest)],
        RunEvent::GateApproved { comment, approvals_remaining, .. } => {
            // Given in advance, an approval is recorded by whatever reached the gate.
            let mut details = vec![("by", V::Name(run.approver(fact).to_string()))];
            if *approvals_remaining > 0 {
                details.push(("approvals_remaining", count(approvals_remaining)));
            }
            details.extend(said(comment));
            details
        }
        RunEvent::GateVoided { approval_digest, cause, .. } => {
            vec![digest(approval_digest), ("cause", V::Text(cause.words()))]
        }
        RunEvent::GateRejected { comment, .. }
        | RunEvent::RunCancelRequested { reason: comment } => {
            std::iter::once(by()).chain(said(comment)).collect()
        }
        RunEvent::JobLeased { attempt: number, worker, .. } => {
            vec![attempt(number), ("worker", V::Worker(worker.clone()))]
        }
        RunEvent::JobSucceeded { attempt: number, ran_ms, .. }
        | RunEvent::JobCancelled { attempt: number, ran_ms, .. } => {
            vec![attempt(number), took(ran_ms)]
        }
        RunEvent::JobAttemptFailed { attempt: number, cause, ran_ms, retry_due, .. } => {
            let (cause, due) = (V::Failure(cause.clone()), V::Time(*retry_due));
            vec![attempt(number), took(ran_ms), ("cause", cause), ("retry_due", due)]
        }
        RunEvent::JobFailed { attempt: number, cause, ran_ms, .. } => {
            vec![attempt(number), took(ran_ms), ("cause", V::Failure(cause.clone()))]
        }
        // The line of the lease has the worker.
        RunEvent::JobLost { attempt: number, reason, .. } => {
            vec![attempt(number), ("reason", V::Text(reason.clone()))]
        }
        RunEvent::JobSkipped { cause, .. } => match cause {
            // As texts: a name may hold a blank, at which the value would end for a script.
            SkipCause::NeedUnmet { need, root } => {
                vec![("need", V::Text(need.to_string())), ("root", V::Text(root.to_string()))]
            }
            SkipCause::ConditionFalse => vec![("if", V::Word("false"))],
        },
        RunEvent::RunAborted { root } => vec![("root", V::Text(root.to_string()))],
        RunEvent::RunTimedOut {} => Vec::new(),
        RunEvent::RunFinished { outcome, succeeded, failed, skipped, cancelled, rejected: _ } => {
            // Since the creation, and not since the last resume: that is how long people waited.
            let created_at = run.header().map(|header| header.created_at);
            let ms = created_at.map_or(0, |created_at| fact.at.ms_since(created_at));
            vec![
                ("outcome", V::Word(outcome.word())),
                ("succeeded", count(succeeded)),
                ("failed", count(failed)),
                ("skipped", count(skipped)),
                ("cancelled", count(cancelled)),
                took(&ms),
            ]
        }
        RunEvent::RunResumed {} | RunEvent::JobRetried { .. } => vec![by()],
        RunEvent::JobsInvalidated { from } => vec![("from", V::Text(from.to_string())), by()],
        RunEvent::PlanReplaced { plan_sha256, jobs, .. } => {
            vec![("plan", V::Digest(*plan_sha256)), ("jobs", count(jobs)), by()]
        }
        RunEvent::JobImported { result, .. } => vec![("status", V::Imported(*result))],
    })
}

/// What a person said, if they said something.
fn said(comment: &str) -> Option<(&'static str, DetailValue)> {
    (!comment.is_empty()).then(|| ("comment", DetailValue::Text(comment.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::Actor, test_events::one_of_each_kind};

    #[test]
    fn every_kind_has_a_line_but_those_that_belong_to_the_creation() {
        let fact = |event| Fact { at: Timestamp(0), by: Actor::human("ana"), event };
        let without: Vec<&str> = one_of_each_kind()
            .into_iter()
            .map(fact)
            .filter(|fact| event_line(&Run::default(), fact).is_none())
            .map(|fact| fact.event.kind())
            .collect();
        assert_eq!(without, ["jobs_planned", "run_started"]);
    }

    #[test]
    fn a_line_names_the_job_with_its_stage_and_what_happened_to_it() {
        use crate::decide::testing::{Fixture, job};
        let mut fixture = Fixture::begin(vec![job("a")]);
        assert_eq!(fixture.leases().as_deref(), Some("a"));

        let line = event_line(&fixture.run, fixture.facts.last().unwrap()).unwrap();

        assert_eq!((line.kind, line.job), ("job_leased", Some(("main".into(), "a".into()))));
        let worker = DetailValue::Worker("w1".into());
        assert_eq!(line.details, [("attempt", DetailValue::Number(1)), ("worker", worker)]);
    }
}
