//! Which streams of one kind are there? (`tow list`, and what a prefix of an id means.)

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    aggregate::{Aggregate, Summary, id_of},
    codec,
    event::Fact,
    ids::Actor,
    time::Timestamp,
};

/// Shortest prefix of an id that is shown, in characters.
const PREFIX_MIN: usize = 6;
/// Most ids that are counted for an ambiguous prefix.
const AMBIGUOUS_MAX: usize = 100;

/// A stream, as a list shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "", deserialize = ""))]
pub struct Listed<A: Aggregate> {
    /// Which stream.
    pub id: A::Id,
    /// What is shown of it.
    pub summary: A::Summary,
    /// The position of its first record.
    pub created: u64,
    /// The position of its newest record in the log.
    pub position: u64,
    /// The version of its newest record.
    pub version: u64,
}

/// Why no stream was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// None fits.
    #[error("nothing answers to that")]
    Unknown,
    /// More than one fits.
    #[error("`{prefix}` fits {count}")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many fit, counted up to a hundred.
        count: usize,
    },
}

/// All streams of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(serialize = "", deserialize = ""))]
pub struct List<A: Aggregate> {
    position: u64,
    newest_at: Timestamp,
    /// In the order in which they were created.
    streams: Vec<Listed<A>>,
    place: BTreeMap<A::Id, usize>,
    /// The streams whose clients gave their request a name, by client and name: see [`request_of`].
    #[serde(default)]
    requests: BTreeMap<String, A::Id>,
    /// Appends taken in ahead of an earlier one: first position to last. Empty at rest.
    #[serde(skip)]
    ahead: BTreeMap<u64, u64>,
    /// Appends of one stream that came ahead of an earlier one of that stream, by the version before
    /// them: a view must see the facts of a stream in order. Empty at rest.
    #[serde(skip)]
    early: Early<A>,
}

/// The first position and the facts of an append, by stream and the version before it.
type Early<A> = BTreeMap<(<A as Aggregate>::Id, u64), (u64, Vec<Fact<<A as Aggregate>::Event>>)>;

// Not derived: that would ask for ids that have a default.
impl<A: Aggregate> Default for List<A> {
    fn default() -> Self {
        Self {
            position: 0,
            newest_at: Timestamp::default(),
            streams: Vec::new(),
            place: BTreeMap::new(),
            requests: BTreeMap::new(),
            ahead: BTreeMap::new(),
            early: BTreeMap::new(),
        }
    }
}

impl<A: Aggregate> List<A> {
    /// How much of the log it has taken in.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// When the newest fact it has taken in was decided.
    pub fn newest_at(&self) -> Timestamp {
        self.newest_at
    }

    /// Newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Listed<A>> {
        self.streams.iter().rev()
    }

    /// Those that began before `id`, newest first. `None`: there is no `id`.
    pub fn before(&self, id: &A::Id) -> Option<impl Iterator<Item = &Listed<A>>> {
        let place = *self.place.get(id)?;
        Some(self.streams.get(..place)?.iter().rev())
    }

    /// The streams that are live, oldest first.
    pub fn live(&self) -> impl Iterator<Item = &A::Id> {
        let live = self.streams.iter().filter(|listed| listed.summary.is_live());
        live.map(|listed| &listed.id)
    }

    /// Whether `id` is known and live.
    pub fn is_live(&self, id: &A::Id) -> bool {
        self.get(id).is_some_and(|listed| listed.summary.is_live())
    }

    /// Stream `id`, as a list shows it.
    pub fn get(&self, id: &A::Id) -> Option<&Listed<A>> {
        self.place.get(id).and_then(|place| self.streams.get(*place))
    }

    /// The one stream that `asked` names: an id, an unambiguous prefix, or `@latest`.
    pub fn find(&self, asked: &str) -> Result<A::Id, FindError> {
        if asked == "@latest" {
            return Ok(self.streams.last().ok_or(FindError::Unknown)?.id.clone());
        }
        if asked.is_empty() {
            return Err(FindError::Unknown);
        }
        let fitting: Vec<&A::Id> = self.starting_with(asked).take(AMBIGUOUS_MAX).collect();
        match fitting[..] {
            [] => Err(FindError::Unknown),
            [one] => Ok(one.clone()),
            [..] => Err(FindError::Ambiguous { prefix: asked.to_owned(), count: fitting.len() }),
        }
    }

    /// The stream that was begun by the request of this name, made by `by`.
    pub fn begun_by(&self, by: &Actor, idempotency_key: &str) -> Option<&A::Id> {
        self.requests.get(&request_of(by, idempotency_key))
    }

    /// The shortest prefix of `id` that names no other.
    pub fn short<'a>(&self, id: &'a A::Id) -> &'a str {
        let text = id.as_ref();
        (PREFIX_MIN..text.len())
            .filter_map(|len| text.get(..len))
            .find(|prefix| self.starting_with(prefix).take(2).count() < 2)
            .unwrap_or(text)
    }

    fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a A::Id> + 'a {
        let from_here = self.place.range(A::Id::from(prefix)..);
        from_here.map(|(id, _)| id).take_while(move |id| id.as_ref().starts_with(prefix))
    }

    /// Takes in the next record of the log, of whatever kind its stream is.
    pub fn read(&mut self, stream: &str, position: u64, version: u64, bytes: &[u8]) {
        if let Some(id) = id_of::<A>(stream) {
            match codec::decode(bytes) {
                Ok(fact) => self.apply(&id, position, version, &fact),
                // The list is of all streams: one that this version cannot read must not keep the
                // others from being listed. It is named, and shown as damaged when it is read.
                Err(_) => self.apply_unreadable(&id, position, version),
            }
        }
        self.position = position;
    }

    /// Takes in facts of stream `id`, the first of which stands at `first` in the log and after
    /// version `before` in its stream. Appends may come in any order: the position is that up to
    /// which none is missing.
    pub fn apply_all(&mut self, id: &A::Id, first: u64, before: u64, facts: &[Fact<A::Event>]) {
        if self.version(id) == before {
            self.apply_in_order(id, first, before, facts);
        } else {
            self.early.insert((id.clone(), before), (first, facts.to_vec()));
        }
        while let Some((first, facts)) = self.early.remove(&(id.clone(), self.version(id))) {
            self.apply_in_order(id, first, self.version(id), &facts);
        }
        self.pass(first, first + facts.len() as u64 - 1);
    }

    /// Takes note that the records from `first` to `last` need not be waited for: they are of
    /// streams of another kind, or taken in already.
    pub fn pass(&mut self, first: u64, last: u64) {
        self.ahead.insert(first, last);
        while let Some(last) = self.ahead.remove(&(self.position + 1)) {
            self.position = last;
        }
    }

    fn version(&self, id: &A::Id) -> u64 {
        self.get(id).map_or(0, |listed| listed.version)
    }

    fn apply_in_order(&mut self, id: &A::Id, first: u64, before: u64, facts: &[Fact<A::Event>]) {
        for (fact, nth) in facts.iter().zip(0..) {
            self.apply(id, first + nth, before + nth + 1, fact);
        }
    }

    fn apply(&mut self, id: &A::Id, position: u64, version: u64, fact: &Fact<A::Event>) {
        self.newest_at = self.newest_at.max(fact.at);
        if let Some(place) = self.place.get(id) {
            let Some(listed) = self.streams.get_mut(*place) else { return };
            listed.summary.take(fact);
            (listed.position, listed.version) = (position, version);
            return;
        }
        let Some(summary) = A::Summary::begin(fact) else { return };
        if let Some(key) = A::Summary::idempotency_key(fact) {
            self.requests.insert(request_of(&fact.by, key), id.clone());
        }
        self.insert(Listed { id: id.clone(), summary, created: position, position, version });
    }

    fn apply_unreadable(&mut self, id: &A::Id, position: u64, version: u64) {
        match self.place.get(id).and_then(|place| self.streams.get_mut(*place)) {
            Some(listed) => (listed.position, listed.version) = (position, version),
            None => {
                let summary = A::Summary::unreadable(id.as_ref(), self.newest_at);
                let id = id.clone();
                self.insert(Listed { id, summary, created: position, position, version });
            }
        }
    }

    /// Puts a stream where it stands in the log: of those that begin together, any may come first.
    fn insert(&mut self, listed: Listed<A>) {
        let before = self.streams.iter().rposition(|other| other.created < listed.created);
        let at = before.map_or(0, |before| before + 1);
        self.streams.insert(at, listed);
        for (listed, place) in self.streams.iter().zip(0..).skip(at) {
            self.place.insert(listed.id.clone(), place);
        }
    }
}

/// What a request is known by. The identity is part of it: keys such as `ci-4711` are easy to guess,
/// and a client that guesses one would be shown the stream of another. No name holds a line feed, so
/// no two pairs make the same text.
fn request_of(by: &Actor, idempotency_key: &str) -> String {
    format!("{by}\n{idempotency_key}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{RunEvent, RunOutcome},
        run::Run,
    };

    fn fact(event: RunEvent) -> Fact {
        Fact { at: Timestamp(1), by: Actor::human("ana"), event }
    }

    fn create(id: &str) -> Fact {
        let mut event = crate::test_events::one_of_each_kind().swap_remove(0);
        if let RunEvent::RunCreated { run, .. } = &mut event {
            *run = id.into();
        }
        fact(event)
    }

    fn created(list: &mut List<Run>, id: &str) {
        let first = list.position() + 1;
        list.apply_all(&id.into(), first, 0, &[create(id)]);
    }

    #[test]
    fn the_position_waits_for_the_append_that_is_missing() {
        let mut list = List::<Run>::default();
        let event = crate::test_events::one_of_each_kind().swap_remove(2);

        list.apply_all(&"b".into(), 2, 0, &[create("b"), fact(event)]);
        assert_eq!(list.position(), 0);
        list.apply_all(&"a".into(), 1, 0, &[create("a")]);
        assert_eq!(list.position(), 3);
    }

    #[test]
    fn records_of_another_kind_are_passed_over() {
        let mut list = List::<Run>::default();

        list.apply_all(&"a".into(), 3, 0, &[create("a")]);
        list.pass(1, 2);
        assert_eq!(list.position(), 3);
        list.read("settings/server", 4, 1, b"not an event of a run");

        assert_eq!(list.position(), 4);
        assert_eq!(list.newest_first().count(), 1, "it is not listed as a run");
    }

    #[test]
    fn appends_of_one_run_are_seen_in_their_order() {
        let mut list = List::<Run>::default();
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
        assert_eq!((list.is_live(&"a".into()), list.position()), (true, 1));
        let earlier = [fact(RunEvent::RunResumed {}), fact(RunEvent::RunStarted {})];
        list.apply_all(&"a".into(), 2, 1, &earlier);

        let listed = list.get(&"a".into()).unwrap();
        assert_eq!((listed.position, listed.version, list.position()), (4, 4, 4));
        let ended = listed.summary.end.as_ref().unwrap();
        assert_eq!((ended.counts.cancelled, ended.counts.rejected), (5, 4));
        assert!(list.early.is_empty() && list.ahead.is_empty());
    }

    #[test]
    fn a_run_answers_to_its_id_a_prefix_and_to_latest() {
        let mut list = List::<Run>::default();
        created(&mut list, "abcdefgh00000001");
        created(&mut list, "abcdefgi00000002");

        assert_eq!(list.find("@latest").unwrap().as_str(), "abcdefgi00000002");
        assert_eq!(list.find("abcdefgh").unwrap().as_str(), "abcdefgh00000001");
        assert_eq!(list.short(&"abcdefgh00000001".into()), "abcdefgh");
        assert!(matches!(list.find("abc"), Err(FindError::Ambiguous { count: 2, .. })));
        assert_eq!(list.find("zzz"), Err(FindError::Unknown));
        assert_eq!(list.find(""), Err(FindError::Unknown));
    }
}
