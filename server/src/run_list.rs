//! Which runs are there, and how did they end? (`tow list`, and what a prefix of an id means.)

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use towpath_engine::{
    codec,
    event::{Fact, RunEvent, RunOutcome},
    ids::{Actor, RunId},
    time::Timestamp,
    views::RunSummary,
};
use towpath_storage::{Position, Record, Version};

use crate::runs::CommandError;

/// Shortest prefix of an id that is shown, in characters.
const PREFIX_MIN: usize = 6;

/// A run, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunListEntry {
    pub(crate) summary: RunSummary,
    /// The position of its first record.
    pub(crate) created: Position,
    /// The position and the version of its newest record.
    pub(crate) position: Position,
    pub(crate) version: Version,
}

impl RunListEntry {
    /// How it ended, if it has.
    pub(crate) fn outcome(&self) -> Option<RunOutcome> {
        self.summary.end.as_ref().map(|end| end.outcome)
    }
}

/// All runs of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunList {
    position: Position,
    newest_at: Timestamp,
    /// In the order in which they were created.
    runs: Vec<RunListEntry>,
    place: BTreeMap<RunId, usize>,
    /// The runs whose clients gave their request a name, by client and name: see [`request_of`].
    #[serde(default)]
    requests: BTreeMap<String, RunId>,
    /// Appends taken in ahead of an earlier one: first position to last. Empty at rest.
    #[serde(skip)]
    ahead: BTreeMap<Position, Position>,
    /// Appends of one run that came ahead of an earlier one of that run, by the version before
    /// them: a view of a run must see its facts in order. Empty at rest.
    #[serde(skip)]
    early: BTreeMap<(RunId, Version), (Position, Vec<Fact>)>,
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
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &RunListEntry> {
        self.runs.iter().rev()
    }

    /// The runs that have not ended, oldest first.
    pub(crate) fn live(&self) -> impl Iterator<Item = &RunId> {
        let live = self.runs.iter().filter(|listed| listed.outcome().is_none());
        live.map(|listed| &listed.summary.run)
    }

    /// Whether `run` is known and has not ended.
    pub(crate) fn is_live(&self, run: &RunId) -> bool {
        let listed = self.place.get(run).and_then(|place| self.runs.get(*place));
        listed.is_some_and(|listed| listed.outcome().is_none())
    }

    /// How the runs that have ended did so.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = RunOutcome> {
        self.runs.iter().filter_map(RunListEntry::outcome)
    }

    /// Run `id`, as a list shows it.
    pub(crate) fn get(&self, id: &RunId) -> Option<&RunListEntry> {
        self.place.get(id).and_then(|place| self.runs.get(*place))
    }

    /// The one run that `asked` names: an id, an unambiguous prefix, or `@latest`.
    pub(crate) fn find(&self, asked: &str) -> Result<RunId, CommandError> {
        let unknown = || towpath_engine::refusal::Refusal::RunUnknown;
        if asked == "@latest" {
            return Ok(self.runs.last().ok_or_else(unknown)?.summary.run.clone());
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

    /// The run that was begun by the request of this name, made by `by`.
    pub(crate) fn begun_by(&self, by: &Actor, idempotency_key: &str) -> Option<&RunId> {
        self.requests.get(&request_of(by, idempotency_key))
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
    pub(crate) fn read(&mut self, record: &Record) {
        if let Some(id) = record.stream.strip_prefix("run/") {
            let id = RunId::from(id);
            match codec::decode(&record.bytes) {
                Ok(fact) => self.apply(&id, record.position, record.version, &fact),
                // The list is of all runs: one that this version cannot read must not keep the
                // others from being listed. It is named, and shown as damaged when it is read.
                Err(_) => self.apply_unreadable(&id, record.position, record.version),
            }
        }
        self.position = record.position;
    }

    /// Takes in facts of run `id`, the first of which stands at `first` in the log and after
    /// version `before` in its stream. Appends may come in any order: the position is that up to
    /// which none is missing.
    pub(crate) fn apply_all(
        &mut self,
        id: &RunId,
        first: Position,
        before: Version,
        facts: &[Fact],
    ) {
        if self.version(id) == before {
            self.apply_in_order(id, first, before, facts);
        } else {
            self.early.insert((id.clone(), before), (first, facts.to_vec()));
        }
        while let Some((first, facts)) = self.early.remove(&(id.clone(), self.version(id))) {
            self.apply_in_order(id, first, self.version(id), &facts);
        }
        self.ahead.insert(first, first + facts.len() as Position - 1);
        while let Some(last) = self.ahead.remove(&(self.position + 1)) {
            self.position = last;
        }
    }

    fn version(&self, id: &RunId) -> Version {
        self.get(id).map_or(0, |listed| listed.version)
    }

    fn apply_in_order(&mut self, id: &RunId, first: Position, before: Version, facts: &[Fact]) {
        for (fact, nth) in facts.iter().zip(0..) {
            self.apply(id, first + nth, before + nth + 1, fact);
        }
    }

    fn apply(&mut self, id: &RunId, position: Position, version: Version, fact: &Fact) {
        self.newest_at = self.newest_at.max(fact.at);
        if let Some(place) = self.place.get(id) {
            let Some(listed) = self.runs.get_mut(*place) else { return };
            listed.summary.take(fact);
            (listed.position, listed.version) = (position, version);
            return;
        }
        let Some(summary) = RunSummary::begin(fact) else { return };
        if let RunEvent::RunCreated { idempotency_key: Some(key), .. } = &fact.event {
            self.requests.insert(request_of(&fact.by, key), id.clone());
        }
        self.insert(RunListEntry { summary, created: position, position, version });
    }

    fn apply_unreadable(&mut self, id: &RunId, position: Position, version: Version) {
        match self.place.get(id).and_then(|place| self.runs.get_mut(*place)) {
            Some(listed) => (listed.position, listed.version) = (position, version),
            None => {
                let summary = RunSummary::unreadable(id.clone(), self.newest_at);
                self.insert(RunListEntry { summary, created: position, position, version });
            }
        }
    }

    /// Puts a run where it stands in the log: of runs that begin together, any may come first.
    fn insert(&mut self, listed: RunListEntry) {
        let before = self.runs.iter().rposition(|other| other.created < listed.created);
        let at = before.map_or(0, |before| before + 1);
        self.runs.insert(at, listed);
        for (listed, place) in self.runs.iter().zip(0..).skip(at) {
            self.place.insert(listed.summary.run.clone(), place);
        }
    }
}

/// What a request is known by. The identity is part of it: keys such as `ci-4711` are easy to guess,
/// and whoever guesses one would be shown the run of somebody else. No name holds a line feed, so no
/// two pairs make the same text.
pub(crate) fn request_of(by: &Actor, idempotency_key: &str) -> String {
    format!("{by}\n{idempotency_key}")
}

#[cfg(test)]
mod tests {

    use super::*;

    fn fact(event: RunEvent) -> Fact {
        Fact { at: Timestamp(1), by: Actor::human("ana"), event }
    }

    fn create(id: &str) -> Fact {
        let mut event = towpath_engine::test_events::one_of_each_kind().swap_remove(0);
        if let RunEvent::RunCreated { run, .. } = &mut event {
            *run = id.into();
        }
        fact(event)
    }

    fn created(list: &mut RunList, id: &str) {
        let first = list.position() + 1;
        list.apply_all(&id.into(), first, 0, &[create(id)]);
    }

    #[test]
    fn the_position_waits_for_the_append_that_is_missing() {
        let mut list = RunList::default();
        let event = towpath_engine::test_events::one_of_each_kind().swap_remove(2);

        list.apply_all(&"b".into(), 2, 0, &[create("b"), fact(event)]);
        assert_eq!(list.position(), 0);
        list.apply_all(&"a".into(), 1, 0, &[create("a")]);
        assert_eq!(list.position(), 3);
    }

    #[test]
    fn appends_of_one_run_are_seen_in_their_order() {
        let mut list = RunList::default();
        let (outcome, succeeded) = (RunOutcome::Failed, 1);
        let end = RunEvent::RunFinished {
            outcome,
            succeeded,
            failed: 2,
            skipped: 3,
            cancelled: 9,
            rejected: 4,
        };
        created(&mut list, "a");

        list.apply_all(&"a".into(), 4, 3, &[fact(end)]);
        assert_eq!((list.get(&"a".into()).unwrap().outcome(), list.position()), (None, 1));
        list.apply_all(
            &"a".into(),
            2,
            1,
            &[fact(RunEvent::RunResumed {}), fact(RunEvent::RunStarted {})],
        );

        let listed = list.get(&"a".into()).unwrap();
        assert_eq!((listed.position, listed.version, list.position()), (4, 4, 4));
        let ended = listed.summary.end.as_ref().unwrap();
        assert_eq!((ended.counts.cancelled, ended.counts.rejected), (5, 4));
        assert!(list.early.is_empty() && list.ahead.is_empty());
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
