//! Which runs are there, and how did they end? (`tow list`, and what a prefix of an id means.)

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use towpath_engine::{
    codec,
    event::{Fact, RunEvent, RunOutcome},
    ids::{Actor, RunId},
    time::Timestamp,
};
use towpath_storage::{Position, Record};

use crate::runs::CommandError;

/// Shortest prefix of an id that is shown, in characters.
const PREFIX_MIN: usize = 6;

/// A run, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) run: RunId,
    pub(crate) pipeline: String,
    pub(crate) created_at: Timestamp,
    pub(crate) requested_by: Actor,
    /// How it ended, if it has.
    pub(crate) outcome: Option<RunOutcome>,
    /// The position of its first record.
    created: Position,
    /// The position of the record that says how it stands.
    changed: Position,
}

/// All runs of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunList {
    position: Position,
    newest_at: Timestamp,
    /// In the order in which they were created.
    runs: Vec<Listed>,
    place: BTreeMap<RunId, usize>,
    /// The runs whose clients gave their request a name, by that name.
    #[serde(default)]
    requests: BTreeMap<String, RunId>,
    /// Appends taken in ahead of an earlier one: first position to last. Empty at rest.
    #[serde(skip)]
    ahead: BTreeMap<Position, Position>,
}

impl RunList {
    /// How much of the log it has taken in.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// When the newest fact it has taken in was decided.
    pub(crate) fn newest_at(&self) -> Timestamp {
        self.newest_at
    }

    /// Newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Listed> {
        self.runs.iter().rev()
    }

    /// The runs that have not ended, oldest first.
    pub(crate) fn live(&self) -> impl Iterator<Item = &RunId> {
        self.runs.iter().filter(|listed| listed.outcome.is_none()).map(|listed| &listed.run)
    }

    /// How the runs that have ended did so.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = RunOutcome> {
        self.runs.iter().filter_map(|listed| listed.outcome)
    }

    /// The one run that `asked` names: an id, an unambiguous prefix, or `@latest`.
    pub(crate) fn find(&self, asked: &str) -> Result<RunId, CommandError> {
        let unknown = || towpath_engine::refusal::Refusal::RunUnknown;
        if asked == "@latest" {
            return Ok(self.runs.last().ok_or_else(unknown)?.run.clone());
        }
        if asked.is_empty() {
            return Err(unknown().into());
        }
        let fitting: Vec<&RunId> = self.starting_with(asked).take(100).collect();
        match fitting[..] {
            [] => Err(unknown().into()),
            [one] => Ok(one.clone()),
            [..] => {
                let (prefix, count) = (asked.to_owned(), fitting.len());
                Err(CommandError::RunAmbiguous { prefix, count })
            }
        }
    }

    /// The run that was begun by the request of this name.
    pub(crate) fn begun_by(&self, idempotency_key: &str) -> Option<&RunId> {
        self.requests.get(idempotency_key)
    }

    /// The shortest prefix of `run` that names no other.
    pub(crate) fn short<'a>(&self, run: &'a RunId) -> &'a str {
        let text = run.as_str();
        (PREFIX_MIN..text.len())
            .filter_map(|len| text.get(..len))
            .find(|prefix| self.starting_with(prefix).take(2).count() < 2)
            .unwrap_or(text)
    }

    fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a RunId> + 'a {
        self.place
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .map(|(run, _)| run)
            .take_while(move |run| run.as_str().starts_with(prefix))
    }

    /// Takes in one more record.
    pub(crate) fn read(&mut self, record: &Record) -> Result<(), CommandError> {
        if let Some(id) = record.stream.strip_prefix("run/") {
            let id = RunId::from(id);
            let fact =
                codec::decode(&record.bytes).map_err(|error| CommandError::Unreplayable {
                    run: id.clone(),
                    version: record.version,
                    why: error.to_string(),
                })?;
            self.apply(&id, record.position, &fact);
        }
        self.position = record.position;
        Ok(())
    }

    /// Takes in facts of run `id`, which stand from `first` on. Appends of different runs may come
    /// in any order: the position is that up to which none is missing.
    pub(crate) fn apply_all(&mut self, id: &RunId, first: Position, facts: &[Fact]) {
        for (fact, position) in facts.iter().zip(first..) {
            self.apply(id, position, fact);
        }
        self.ahead.insert(first, first + facts.len() as Position - 1);
        while let Some(last) = self.ahead.remove(&(self.position + 1)) {
            self.position = last;
        }
    }

    fn apply(&mut self, id: &RunId, position: Position, fact: &Fact) {
        self.newest_at = self.newest_at.max(fact.at);
        match &fact.event {
            RunEvent::RunCreated { pipeline, idempotency_key, .. } => {
                if let Some(key) = idempotency_key {
                    self.requests.insert(key.clone(), id.clone());
                }
                if !self.place.contains_key(id) {
                    self.insert(Listed {
                        run: id.clone(),
                        pipeline: pipeline.clone(),
                        created_at: fact.at,
                        requested_by: fact.by.clone(),
                        created: position,
                        changed: position,
                        outcome: None,
                    });
                }
            }
            RunEvent::RunFinished { outcome, .. } => self.ended(id, Some(*outcome), position),
            RunEvent::RunResumed {}
            | RunEvent::JobsInvalidated { .. }
            | RunEvent::JobRetried { .. }
            | RunEvent::PlanReplaced { .. } => self.ended(id, None, position),
            RunEvent::JobsPlanned { .. }
            | RunEvent::RunStarted {}
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
            | RunEvent::JobImported { .. } => {}
        }
    }

    /// Puts a run where it stands in the log: of runs that begin together, any may come first.
    fn insert(&mut self, listed: Listed) {
        let before = self.runs.iter().rposition(|other| other.created < listed.created);
        let at = before.map_or(0, |before| before + 1);
        self.runs.insert(at, listed);
        for (listed, place) in self.runs.iter().zip(0..).skip(at) {
            self.place.insert(listed.run.clone(), place);
        }
    }

    fn ended(&mut self, id: &RunId, outcome: Option<RunOutcome>, position: Position) {
        let listed = self.place.get(id).and_then(|place| self.runs.get_mut(*place));
        if let Some(listed) = listed.filter(|listed| listed.changed < position) {
            (listed.outcome, listed.changed) = (outcome, position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(list: &mut RunList, id: &str) {
        let event = towpath_engine::specimens::one_of_each_kind().swap_remove(0);
        let fact = Fact { at: Timestamp(1), by: Actor::human("ana"), event };
        let first = list.position() + 1;
        list.apply_all(&id.into(), first, &[fact]);
    }

    #[test]
    fn the_position_waits_for_the_append_that_is_missing() {
        let mut list = RunList::default();
        let event = towpath_engine::specimens::one_of_each_kind().swap_remove(2);
        let fact = Fact { at: Timestamp(1), by: Actor::human("ana"), event };

        list.apply_all(&"b".into(), 2, &[fact.clone(), fact.clone()]);
        assert_eq!(list.position(), 0);
        list.apply_all(&"a".into(), 1, &[fact]);
        assert_eq!(list.position(), 3);
    }

    #[test]
    fn a_run_answers_to_its_id_a_prefix_and_to_latest() {
        let mut list = RunList::default();
        created(&mut list, "abcdefgh00000001");
        created(&mut list, "abcdefgi00000002");

        assert_eq!(list.find("@latest").unwrap().as_str(), "abcdefgi00000002");
        assert_eq!(list.find("abcdefgh").unwrap().as_str(), "abcdefgh00000001");
        assert_eq!(list.short(&"abcdefgh00000001".into()), "abcdefgh");
        assert!(matches!(list.find("abc"), Err(CommandError::RunAmbiguous { count: 2, .. })));
        assert!(matches!(list.find("zzz"), Err(CommandError::Refused(_))));
        assert!(matches!(list.find(""), Err(CommandError::Refused(_))));
    }
}
