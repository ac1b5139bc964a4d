//! Why a job is in its state, as a sentence and the command that would change it.

use towpath_engine::scheduler::LOCAL_WORKER_PREFIX;
use towpath_engine::{
    expression::quoted,
    time::{Timestamp, duration_words},
};
use towpath_proto::{
    v1::{self, JobState, SkipCause, WaitReason},
    words::Word as _,
};

use super::words::{self, GateFacts, moment};

/// An explanation in words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Explained {
    pub(crate) sentence: String,
    /// What would change it, if there is such a command.
    pub(crate) command: Option<String>,
}

/// What `answer` says, at `now`.
pub(crate) fn explained(answer: &v1::ExplainJobResponse, now: Timestamp) -> Explained {
    let (job, run) =
        (answer.job.clone().unwrap_or_default(), answer.run.clone().unwrap_or_default());
    let explanation = answer.explanation.clone().unwrap_or_default();
    // How long something had lasted then.
    let then = answer.as_of.as_ref().and_then(|as_of| moment(as_of.time.as_ref()));
    let (now, past) = (then.unwrap_or(now), answer.as_of.is_some());
    let asked = Asked { job: &job, run: &run, explanation: &explanation, now, past };
    let command = if answer.as_of.is_some() { None } else { asked.command() };
    Explained { sentence: asked.sentence(), command }
}

struct Asked<'a> {
    job: &'a v1::Job,
    run: &'a v1::Run,
    explanation: &'a v1::Explanation,
    now: Timestamp,
    /// Of the past only what the run's own records say is known.
    past: bool,
}

impl Asked<'_> {
    #[expect(clippy::too_many_lines, reason = "one table: what is said of each reason")]
    fn sentence(&self) -> String {
        let name = &self.job.name;
        let since = || {
            // An earlier server sends no time; 0 s is better than no answer.
            let since = moment(self.job.since.as_ref()).unwrap_or(self.now);
            duration_words(self.now.ms_since(since))
        };
        match self.explanation.reason() {
            WaitReason::Ended => self.end(),
            WaitReason::Running | WaitReason::Ending => {
                let ends = self.explanation.reason() == WaitReason::Ending;
                let doing = if ends { "is being ended" } else { "runs" };
                let (worker, attempt) = (self.worker(), self.job.attempt);
                format!("`{name}` {doing} on {worker} (attempt {attempt}, {}).", since())
            }
            WaitReason::WorkerAbsent => format!(
                "`{name}` is assigned to {} (attempt {}, {} ago), which is not connected. The job \
                 may still be running; its result is not lost.",
                self.worker(),
                self.job.attempt,
                since(),
            ),
            WaitReason::Gate => {
                let digest = self.job.approval_digest.get(..12).unwrap_or_default();
                let wants = words::gate_waits_for(&GateFacts::from(self.job));
                let wants = if wants.is_empty() { wants } else { format!(": {wants}") };
                format!(
                    "`{name}` waits at its gate for a person since {} ({digest}){wants}.",
                    since()
                )
            }
            WaitReason::Backoff => {
                let due = moment(self.job.retry_at.as_ref()).unwrap_or(self.now);
                let (wait, why) = (duration_words(due.ms_since(self.now)), words::reason(self.job));
                format!("`{name}` is retried in {wait} (at {due}): {why}.")
            }
            WaitReason::Needs => {
                let waited = self.explanation.waits_for.iter();
                let list = waited.map(|need| format!("`{}` ({})", need.name, need.state().word()));
                let mut list: Vec<String> = list.collect();
                let count = self.explanation.waits_for_count as usize;
                // The server bounds the list: a job may need thousands.
                let more = count.saturating_sub(list.len());
                list.extend((more > 0).then(|| format!("and {more} more")));
                format!("`{name}` waits for {}.", list.join(", "))
            }
            WaitReason::EarlierStage => {
                let first = self.explanation.waits_for.first().cloned().unwrap_or_default();
                let (stage, state) = (&first.stage, first.state().word());
                format!("`{name}` waits for stage `{stage}`: `{}` is {state}.", first.name)
            }
            WaitReason::Lock => {
                let lock = self.explanation.lock.clone().unwrap_or_default();
                let (held, limit) = (lock.held, lock.limit);
                format!("`{name}` waits for the lock `{}` ({held} of {limit} taken).", lock.name)
            }
            WaitReason::RunNotRunning => {
                format!("`{name}` waits, but the run is {}.", words::phase(self.run))
            }
            WaitReason::Parallelism => {
                let places = self.explanation.parallelism;
                format!("`{name}` is ready; all {places} places of the run are taken.")
            }
            WaitReason::NoWorker => {
                format!("`{name}` is ready, but no worker is connected that takes jobs of its run.")
            }
            WaitReason::WorkersDrained => {
                format!("`{name}` is ready, but every worker that is connected is drained.")
            }
            WaitReason::LeasingPaused => {
                let why = &self.explanation.store_error;
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                format!("`{name}` is ready, but the store takes no leases now{why}.")
            }
            WaitReason::Tags => {
                let tags = self.explanation.tags.join(", ");
                format!("`{name}` is ready, but no worker offers: {tags}.")
            }
            WaitReason::FreeSlot if self.past => {
                format!("`{name}` is ready. Workers and locks of that time are not recorded.")
            }
            WaitReason::FreeSlot => {
                let manual = self.job.when() == v1::JobCondition::Manual;
                let gate = if manual { " and approved" } else { "" };
                format!("`{name}` is ready{gate} and will be given to the next free worker.")
            }
            // A server of a later version.
            WaitReason::Unspecified => format!("`{name}` is {}.", self.job.state().word()),
        }
    }

    fn end(&self) -> String {
        let (name, reason) = (&self.job.name, words::reason(self.job));
        match self.job.state() {
            JobState::Succeeded => format!("`{name}` succeeded in {}.", words::ran(self.job)),
            JobState::Failed | JobState::TimedOut => format!("`{name}` failed: {reason}."),
            JobState::Skipped => format!("`{name}` was skipped: {reason}."),
            JobState::Cancelled => format!("`{name}` was cancelled with its run."),
            JobState::Rejected => {
                format!("The gate of `{name}` was rejected: {reason}.")
            }
            state @ (JobState::Unspecified
            | JobState::Waiting
            | JobState::Admitted
            | JobState::Declined
            | JobState::AtGate
            | JobState::Approved
            | JobState::Running
            | JobState::BackingOff
            | JobState::Requeued) => format!("`{name}` is {}.", state.word()),
        }
    }

    fn worker(&self) -> &str {
        let own = self.job.worker.starts_with(LOCAL_WORKER_PREFIX);
        if own { "this machine" } else { &self.job.worker }
    }

    fn command(&self) -> Option<String> {
        let (name, id) = (quoted(&self.job.name), &self.run.short_id);
        let resume = || format!("tow resume {id}");
        let of_waited = || {
            let first = self.explanation.waits_for.first()?;
            Some(format!("tow why {} --run {id}", quoted(&first.name)))
        };
        match self.explanation.reason() {
            WaitReason::Ended => match self.job.state() {
                JobState::Failed | JobState::TimedOut => {
                    Some(format!("tow retry {name} --run {id}"))
                }
                JobState::Skipped => self.after_skip(),
                // Not `retry`: the cause is another job, and a resume runs both.
                JobState::Cancelled | JobState::Rejected => Some(resume()),
                JobState::Unspecified
                | JobState::Waiting
                | JobState::Admitted
                | JobState::Declined
                | JobState::AtGate
                | JobState::Approved
                | JobState::Running
                | JobState::BackingOff
                | JobState::Requeued
                | JobState::Succeeded => None,
            },
            WaitReason::Running | WaitReason::Ending => {
                Some(format!("tow logs {name} --run {id} -f"))
            }
            WaitReason::WorkerAbsent | WaitReason::NoWorker => Some(resume()),
            WaitReason::Gate => Some(format!("tow approve {name} --run {id}")),
            WaitReason::Needs | WaitReason::EarlierStage => of_waited(),
            WaitReason::WorkersDrained => Some("tow workers".to_owned()),
            WaitReason::Unspecified
            | WaitReason::Backoff
            | WaitReason::Lock
            | WaitReason::RunNotRunning
            | WaitReason::Parallelism
            | WaitReason::Tags
            | WaitReason::LeasingPaused
            | WaitReason::FreeSlot => None,
        }
    }

    /// What would let a job run that was skipped. Its cause decides: a resume evaluates an `if` on
    /// the same values, unless other jobs run again, and is refused for a run that has succeeded.
    fn after_skip(&self) -> Option<String> {
        let (skip, id) = (self.job.skip.clone().unwrap_or_default(), &self.run.short_id);
        let succeeded = self.run.outcome() == v1::RunOutcome::Succeeded;
        match skip.cause() {
            SkipCause::ConditionFalse => None,
            // The need was not run either, and what would change that is said of it.
            SkipCause::NeedUnmet if skip.root_state() == JobState::Skipped => {
                Some(format!("tow why {} --run {id}", quoted(&skip.root)))
            }
            SkipCause::NeedUnmet
            | SkipCause::RunAborted
            | SkipCause::Imported
            | SkipCause::Unspecified => (!succeeded).then(|| format!("tow resume {id}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use towpath_proto::time::timestamp;

    use super::*;

    const NOW: Timestamp = Timestamp(100_000);

    fn answer(job: v1::Job, explanation: v1::Explanation) -> v1::ExplainJobResponse {
        let run =
            v1::Run { id: "7f3ca10b".into(), short_id: "7f3ca1".into(), ..Default::default() };
        v1::ExplainJobResponse {
            job: Some(v1::Job { name: "a b".into(), ..job }),
            explanation: Some(explanation),
            run: Some(run),
            as_of: None,
        }
    }

    fn said(job: v1::Job, explanation: v1::Explanation) -> (String, String) {
        let Explained { sentence, command } = explained(&answer(job, explanation), NOW);
        (sentence, command.unwrap_or_default())
    }

    fn of(reason: WaitReason) -> v1::Explanation {
        v1::Explanation { reason: reason.into(), ..Default::default() }
    }

    #[test]
    fn every_reason_names_the_job_and_commands_are_quoted() {
        for number in 0..=16 {
            let reason = WaitReason::try_from(number).unwrap();
            let (sentence, command) = said(v1::Job::default(), of(reason));
            assert!(sentence.starts_with("`a b` ") && sentence.ends_with('.'), "{sentence}");
            assert!(!command.contains(" a b"), "{command}");
        }
        assert!(WaitReason::try_from(17).is_err(), "every reason is looked at");
    }

    #[test]
    fn a_gate_says_how_far_it_is_and_who_is_waited_for() {
        let job = v1::Job {
            state: JobState::AtGate.into(),
            since: Some(timestamp(40_000)),
            approval_digest: "0123456789abcdef".into(),
            policy: Some(v1::GatePolicy {
                approvers: vec!["role:approver".into()],
                min: 2,
                not: vec![v1::GateExclusion::Requester.into()],
                expires_after: None,
            }),
            approvals: vec![v1::GateApproval { by: "human:bob".into(), ..Default::default() }],
            approvals_remaining: 1,
            ..Default::default()
        };
        let (sentence, command) = said(job, of(WaitReason::Gate));
        assert_eq!(
            sentence,
            "`a b` waits at its gate for a person since 1m00s (0123456789ab): 1 of 2 approvals, by \
             human:bob; waits for one more of role:approver, not the requester."
        );
        assert_eq!(command, "tow approve 'a b' --run 7f3ca1");
    }

    #[test]
    fn needs_are_listed_and_the_first_is_asked_about() {
        let need = |name: &str, state: JobState| v1::WaitedJob {
            name: name.into(),
            state: state.into(),
            ..Default::default()
        };
        let explanation = v1::Explanation {
            waits_for: vec![need("x", JobState::Running), need("y", JobState::AtGate)],
            waits_for_count: 5,
            ..of(WaitReason::Needs)
        };
        let (sentence, command) = said(v1::Job::default(), explanation);
        assert_eq!(sentence, "`a b` waits for `x` (running), `y` (at_gate), and 3 more.");
        assert_eq!(command, "tow why x --run 7f3ca1");
    }

    #[test]
    fn an_end_says_why() {
        let failed = v1::Job {
            state: JobState::Failed.into(),
            failure: Some(v1::JobFailure {
                kind: v1::FailureKind::ExitCode.into(),
                exit_code: Some(3),
                ..Default::default()
            }),
            ..Default::default()
        };
        let (sentence, command) = said(failed, of(WaitReason::Ended));
        assert_eq!(
            (&*sentence, &*command),
            ("`a b` failed: exit code 3.", "tow retry 'a b' --run 7f3ca1")
        );
        let skipped = v1::Job {
            state: JobState::Skipped.into(),
            skip: Some(v1::JobSkip {
                cause: SkipCause::NeedUnmet.into(),
                need: "b".into(),
                root: "a".into(),
                root_state: JobState::Rejected.into(),
            }),
            ..Default::default()
        };
        let (sentence, _) = said(skipped, of(WaitReason::Ended));
        assert_eq!(sentence, "`a b` was skipped: needs b, and a was rejected.");
    }

    /// What is suggested for a job that was skipped like this, in a run that ended like that.
    fn after(cause: SkipCause, root_state: JobState, outcome: v1::RunOutcome) -> String {
        let skip = v1::JobSkip {
            cause: cause.into(),
            need: "b".into(),
            root: "a b".into(),
            root_state: root_state.into(),
        };
        let (state, skip) = (JobState::Skipped.into(), Some(skip));
        let job = v1::Job { state, skip, ..Default::default() };
        let mut answer = answer(job, of(WaitReason::Ended));
        answer.run.as_mut().unwrap().outcome = outcome.into();
        explained(&answer, NOW).command.unwrap_or_default()
    }

    #[test]
    fn the_cause_of_a_skip_decides_what_would_change_it() {
        use v1::RunOutcome::{Failed, Succeeded};
        let none = JobState::Unspecified;
        let resume = "tow resume 7f3ca1";

        assert_eq!(after(SkipCause::ConditionFalse, none, Succeeded), "");
        assert_eq!(after(SkipCause::ConditionFalse, none, Failed), "");
        let root = after(SkipCause::NeedUnmet, JobState::Skipped, Succeeded);
        assert_eq!(root, "tow why 'a b' --run 7f3ca1");
        assert_eq!(after(SkipCause::NeedUnmet, JobState::Failed, Failed), resume);
        assert_eq!(after(SkipCause::RunAborted, JobState::Failed, Failed), resume);
        assert_eq!(after(SkipCause::Imported, none, Failed), resume);
        assert_eq!(after(SkipCause::Imported, none, Succeeded), "");
    }
}
