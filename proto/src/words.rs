//! Values of enums as words: lower case, without the prefix that the language of the contract asks
//! for. The program shows these words, takes them as arguments and writes them into JSON.

use crate::v1;

/// An enum of the contract.
pub trait Word: Copy {
    /// What the names of its values begin with.
    const PREFIX: &'static str;

    /// The name of the value in the contract.
    fn name(self) -> &'static str;

    /// The value of that name.
    fn of_name(name: &str) -> Option<Self>;

    /// The value in one word, `at_gate`.
    fn word(self) -> String {
        self.name().trim_start_matches(Self::PREFIX).to_ascii_lowercase()
    }

    /// The value that `word` means. `None`: none, or the one that says nothing.
    fn of_word(word: &str) -> Option<Self> {
        let name = format!("{}{}", Self::PREFIX, word.to_ascii_uppercase());
        Self::of_name(&name).filter(|_| word != "unspecified")
    }
}

macro_rules! words {
    ($($name:ident $prefix:literal,)*) => {
        $(impl Word for v1::$name {
            const PREFIX: &'static str = $prefix;

            fn name(self) -> &'static str {
                self.as_str_name()
            }

            fn of_name(name: &str) -> Option<Self> {
                Self::from_str_name(name)
            }
        })*
    };
}

words! {
    FailureKind "FAILURE_KIND_",
    FailurePolicy "FAILURE_POLICY_",
    GateExclusion "GATE_EXCLUSION_",
    JobCondition "JOB_CONDITION_",
    JobState "JOB_STATE_",
    JobView "JOB_VIEW_",
    Role "ROLE_",
    RunOutcome "RUN_OUTCOME_",
    RunPhase "RUN_PHASE_",
    SkipCause "SKIP_CAUSE_",
    WaitReason "WAIT_REASON_",
    WorkerState "WORKER_STATE_",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_the_name_without_its_prefix() {
        assert_eq!(v1::JobState::AtGate.word(), "at_gate");
        assert_eq!(v1::JobState::of_word("at_gate"), Some(v1::JobState::AtGate));
        assert_eq!(v1::RunOutcome::of_word("unspecified"), None);
        assert_eq!(v1::RunOutcome::of_word("Failed!"), None);
    }
}
