//! One line for each transition: for files, CI and eyes that cannot follow a moving picture. What a
//! line says is up to the engine; how its values are written is up to this file.

use towpath_engine::{
    event::{Fact, FailureCause},
    run::Run,
    time::duration_words,
    views::{DetailValue, EventLine, event_line},
};

use super::{safe, worker_word};

/// The line for `fact` at `position`; `run` has taken it in. `None`: nothing a reader needs.
pub(crate) fn line(position: u64, fact: &Fact, run: &Run) -> Option<String> {
    let EventLine { kind, job, details } = event_line(run, fact)?;
    // `job.failed` and not `job_failed`: the dot lets `grep ' job\.'` select one kind of record.
    let kind = kind.replacen('_', ".", 1);
    let mut line = format!("{} {position:08} {kind}", fact.at);
    if let Some((stage, job)) = job {
        line.push_str(&format!(" {}/{}", safe(stage.as_str()), safe(job.as_str())));
    }
    for (name, value) in &details {
        line.push_str(&format!(" {name}={}", written(value)));
    }
    Some(line)
}

fn written(value: &DetailValue) -> String {
    match value {
        DetailValue::Number(number) => number.to_string(),
        DetailValue::Word(word) => (*word).to_owned(),
        DetailValue::Name(name) => safe(name),
        DetailValue::Text(text) => quoted(text),
        DetailValue::Duration(ms) => duration_words(*ms),
        DetailValue::Time(time) => time.to_string(),
        DetailValue::Digest(digest) => digest.short(),
        DetailValue::Worker(worker) => worker_word(worker.as_str()),
        DetailValue::Failure(cause) => cause_words(cause),
        DetailValue::Imported(result) => {
            towpath_pipeline::pulsaride_jsonl::status_word(*result).to_owned()
        }
    }
}

/// Quoted and escaped: a line of this format is split at spaces by scripts.
fn quoted(text: &str) -> String {
    format!("{:?}", safe(text))
}

/// A cause in one word or a quoted sentence.
fn cause_words(cause: &FailureCause) -> String {
    let value = match cause {
        FailureCause::ExitCode(number) | FailureCause::Signal(number) => number.to_string(),
        FailureCause::TimedOut(ms) => duration_words(*ms),
        FailureCause::Lost(times) => times.to_string(),
        FailureCause::NotStarted(why)
        | FailureCause::OutputUnusable(why)
        | FailureCause::ReportInvalid(why) => quoted(why),
    };
    format!("{}:{value}", cause.class())
}

#[cfg(test)]
mod tests {
    use towpath_engine::{ids::Actor, test_events::one_of_each_kind, time::Timestamp};

    use super::*;

    #[test]
    fn every_kind_is_one_line_without_control_characters() {
        for event in one_of_each_kind() {
            let fact = Fact { at: Timestamp(0), by: Actor::human("ana"), event };
            let Some(line) = line(7, &fact, &Run::default()) else { continue };
            assert!(line.starts_with("1970-01-01T00:00:00.000Z 00000007 "), "{line}");
            assert!(!line.contains(char::is_control), "{line}");
        }
    }

    #[test]
    fn every_kind_reads_as_ever() {
        // Scripts read these lines, so their words and their order stay as they are.
        let lines = one_of_each_kind().into_iter().filter_map(|event| {
            let fact = Fact { at: Timestamp(0), by: Actor::human("ana"), event };
            line(7, &fact, &Run::default())
        });
        let lines = lines.map(|line| {
            line.strip_prefix("1970-01-01T00:00:00.000Z 00000007 ").unwrap().to_owned() + "\n"
        });
        assert_eq!(
            lines.collect::<String>(),
            r#"run.created run=7f3ca10b2d4e6f80 pipeline=shop jobs=1 parallelism=4 by=human:ana
condition.evaluated holds=true
gate.reached approval_digest=6f4e6628a679
gate.approved by=human:ana comment="counts read"
gate.voided approval_digest=6f4e6628a679 cause="`check`, which it covered, runs again"
gate.rejected by=human:ana comment="not on a Friday"
job.leased attempt=2 worker=eu-2
job.succeeded attempt=2 dur=6.0s
job.attempt_failed attempt=2 dur=40ms cause=exit_code:75 retry_due=2023-11-14T22:13:28.000Z
job.failed attempt=2 dur=1m00s cause=timeout:1m00s
job.cancelled attempt=2 dur=90ms
job.lost attempt=2 reason="its process is gone"
job.skipped need="b" root="a"
run.aborted root="check"
run.cancel_requested by=human:ana comment="wrong target"
run.timed_out
run.finished outcome=partial succeeded=7 failed=1 skipped=2 cancelled=0 dur=0ms
run.resumed by=human:ana
jobs.invalidated from="copy" by=human:ana
job.retried by=human:ana
plan.replaced plan=c7af058f2d0d jobs=2 by=human:ana
job.imported status=FAILED
"#
        );
    }
}
