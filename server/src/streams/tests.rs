//! A kind of streams that this file alone knows takes the same way as all others: one type that is
//! an aggregate, and one line that opens it.

use std::{path::Path, sync::Arc};

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use towpath_engine::{
    aggregate::{Aggregate, Event, IllegalEvent},
    event::Fact,
    ids::Actor,
    refusal::Refusal,
    time::Timestamp,
    views::Summary,
};
use towpath_storage::{EventStore as _, MemoryStore, NewRecord};

use super::{SNAPSHOT_EVERY, Streams};
use crate::{
    SetClock,
    command_error::CommandError,
    open_log::{Checked, OpenLog, StreamKind as _},
    sync::locked,
};

/// Most steps of one command.
const STEPS_MAX: u64 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum CounterEvent {
    CounterRaised { to: u64 },
}

impl Event for CounterEvent {
    fn kind(&self) -> &'static str {
        "counter_raised"
    }
}

#[derive(Clone, Debug)]
struct Raise(u64);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counter {
    count: u64,
    newest_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CounterSummary {
    count: u64,
}

impl Summary for CounterSummary {
    type Event = CounterEvent;

    fn begin(fact: &Fact<CounterEvent>) -> Option<Self> {
        let CounterEvent::CounterRaised { to } = fact.event;
        Some(Self { count: to })
    }

    fn take(&mut self, fact: &Fact<CounterEvent>) {
        let CounterEvent::CounterRaised { to } = fact.event;
        self.count = to;
    }

    fn unreadable(_id: &str, _at: Timestamp) -> Self {
        Self { count: 0 }
    }

    fn is_live(&self) -> bool {
        true
    }
}

impl Aggregate for Counter {
    const KIND: &'static str = "counter";
    type Id = String;
    type Event = CounterEvent;
    type Command = Raise;
    type Summary = CounterSummary;

    fn decide(
        &self,
        Raise(steps): &Raise,
        _by: &Actor,
        _now: Timestamp,
    ) -> Result<Vec<CounterEvent>, Refusal> {
        if *steps > STEPS_MAX {
            let bounds = format!("at most {STEPS_MAX}");
            return Err(Refusal::ArgumentOutOfBounds { what: "the steps", bounds });
        }
        let next = (1..=*steps).map(|step| CounterEvent::CounterRaised { to: self.count + step });
        Ok(next.collect())
    }

    fn evolve(&mut self, fact: &Fact<CounterEvent>) -> Result<(), IllegalEvent> {
        let CounterEvent::CounterRaised { to } = fact.event;
        if to != self.count + 1 {
            return Err(IllegalEvent::new(&fact.event, format!("the count is {}", self.count)));
        }
        (self.count, self.newest_at) = (to, fact.at);
        Ok(())
    }

    fn newest_at(&self) -> Timestamp {
        self.newest_at
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn changes_idle(_event: &CounterEvent) -> bool {
        false
    }

    fn to_snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap()
    }

    fn from_snapshot(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
    }

    fn summary(&self) -> Option<CounterSummary> {
        (self.count > 0).then_some(CounterSummary { count: self.count })
    }
}

type Counters = Arc<Streams<Counter, ()>>;

/// The counters of `store`: what a server does when it starts.
async fn opened(store: &Arc<MemoryStore>, snapshots: &Path) -> Counters {
    let store = Arc::<MemoryStore>::clone(store);
    let clock = Arc::new(SetClock::at(Timestamp(1_000)));
    let log = Arc::new(OpenLog::new(store, clock, snapshots.to_owned(), 0));
    Streams::open(&log, ()).await.unwrap()
}

async fn raise(counters: &Counters, id: &str, steps: u64) -> Result<usize, CommandError> {
    let recorded = counters.execute(&id.to_owned(), Raise(steps), &Actor::human("ana")).await;
    recorded.map(|recorded| recorded.facts.len())
}

async fn count(counters: &Counters, id: &str) -> u64 {
    counters.read_durable(&id.to_owned(), |loaded| loaded.state.count).await.unwrap()
}

async fn checked(counters: &Counters) -> Checked {
    let mut check = Arc::clone(counters).begin_check();
    for record in counters.log.store.read_all(0, 100_000).await.unwrap() {
        check.take(&record);
    }
    check.finish().await.unwrap()
}

#[tokio::test]
async fn a_kind_of_its_own_is_decided_appended_listed_and_replayed() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let counters = opened(&store, folder.path()).await;

    assert_eq!(raise(&counters, "a", 2).await.unwrap(), 2);
    assert_eq!(raise(&counters, "b", 1).await.unwrap(), 1);
    assert_eq!(raise(&counters, "a", 0).await.unwrap(), 0, "it is so already");
    let refused = raise(&counters, "a", STEPS_MAX + 1).await.unwrap_err();

    assert_eq!(refused.code().as_str(), "ARGUMENT_OUT_OF_BOUNDS");
    let records = store.read("counter/a", 0, 10).await.unwrap();
    let kinds: Vec<&str> = records.iter().map(|record| &*record.kind).collect();
    assert_eq!(kinds, ["counter_raised", "counter_raised"]);
    for counters in [&counters, &opened(&store, folder.path()).await] {
        assert_eq!((count(counters, "a").await, count(counters, "b").await), (2, 1));
        let list = locked(&counters.list).clone();
        let listed: Vec<_> = list.newest_first().map(|it| (&*it.id, it.summary.count)).collect();
        assert_eq!((listed, list.position()), (vec![("b", 1), ("a", 2)], 3));
        assert_eq!(list.find("@latest").unwrap(), "b");
        assert!(checked(counters).await.findings.is_empty());
    }
}

#[tokio::test]
async fn followers_of_a_stream_of_any_kind_wake_for_it_alone() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let counters = opened(&store, folder.path()).await;
    let follow = |stream: &str| counters.log.followers.follow(stream);
    let (mut one, mut other) = (follow("counter/a"), follow("counter/b"));

    raise(&counters, "a", 1).await.unwrap();

    assert!(one.wait().now_or_never().is_some());
    assert!(other.wait().now_or_never().is_none());
}

#[tokio::test]
async fn a_stream_that_grew_is_read_from_its_snapshot() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let counters = opened(&store, folder.path()).await;
    raise(&counters, "a", SNAPSHOT_EVERY).await.unwrap();
    raise(&counters, "a", 1).await.unwrap();

    let again = opened(&store, folder.path()).await;

    let loaded = again.lock_latest(&"a".to_owned()).await.unwrap();
    assert_eq!(loaded.snapshot_version, SNAPSHOT_EVERY);
    assert_eq!((loaded.version, loaded.state.count), (SNAPSHOT_EVERY + 1, SNAPSHOT_EVERY + 1));
    drop(loaded);
    assert!(checked(&again).await.findings.is_empty());
}

#[tokio::test]
async fn a_refused_append_leaves_memory_as_the_log_is() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let counters = opened(&store, folder.path()).await;
    raise(&counters, "a", 1).await.unwrap();
    store.stand_still(0);

    let refused = raise(&counters, "a", 1).await;

    assert!(matches!(refused, Err(CommandError::StoreBusy)));
    store.go_on();
    assert_eq!(count(&counters, "a").await, 1);
    assert_eq!(raise(&counters, "a", 1).await.unwrap(), 1);
    assert_eq!(count(&counters, "a").await, 2);
}

#[tokio::test]
async fn a_stream_that_cannot_be_replayed_is_set_aside_alone() {
    let (store, folder) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
    let counters = opened(&store, folder.path()).await;
    raise(&counters, "a", 1).await.unwrap();
    raise(&counters, "b", 1).await.unwrap();
    let skipped = br#"{"at":"1970-01-01T00:00:02.000Z","by":"human:ana","event":{"kind":"counter_raised","to":9}}"#;
    let record = NewRecord::new("counter_raised", skipped.to_vec());
    store.append("counter/a", 1, vec![record]).await.unwrap();

    let again = opened(&store, folder.path()).await;
    again.load_live().await.unwrap();

    assert_eq!(again.live(), ["b"]);
    assert_eq!(count(&again, "b").await, 1);
    let refused = raise(&again, "a", 1).await.unwrap_err();
    assert!(
        refused.to_string().contains("`counter/a` cannot be replayed at version 2"),
        "{refused}"
    );
    let findings = checked(&again).await.findings;
    let found =
        findings.iter().any(|it| it.starts_with("counter a cannot be replayed at version 2"));
    assert!(found, "{findings:?}");
}
