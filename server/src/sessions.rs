//! One worker that is connected: who it is, what it holds, and how much more it can take.

use std::{collections::HashSet, time::Instant};

use tokio::sync::mpsc;
use tonic::Status;
use towpath_engine::{
    ids::{JobName, RunId, WorkerName, invisible_in},
    refusal::Refusal,
    time::Timestamp,
};
use towpath_proto::v1;

use crate::{outputs::Key, runs::CommandError};

/// Messages that may wait for one worker. More than its slots could ever cause.
pub(crate) const SESSION_QUEUE: usize = 4_096;
/// Most slots of one worker.
const SLOTS_MAX: u32 = 4_096;
/// Longest name of a worker, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// The version of this server.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A message on its way to a worker.
pub(crate) type Outgoing = Result<v1::ServerMessage, Status>;

/// A worker that is connected.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) worker: WorkerName,
    /// Which process it is.
    instance: String,
    version: String,
    slots: u32,
    pub(crate) tags: Vec<String>,
    /// Only jobs of this run.
    pub(crate) only: Option<RunId>,
    /// Only this job of that run.
    pub(crate) job: Option<JobName>,
    since: Timestamp,
    /// Its welcome is on its way: before that it is given nothing.
    pub(crate) begun: bool,
    /// It asked for nothing more.
    pub(crate) draining: bool,
    /// The same worker has opened another session.
    pub(crate) replaced: bool,
    /// How many assignments it still takes, if it said so.
    left: Option<u32>,
    pub(crate) held: HashSet<Key>,
    /// Leases that were queued and are not durable yet.
    pub(crate) coming: u32,
    /// When it last said anything.
    pub(crate) heard: Instant,
    pub(crate) send: mpsc::Sender<Outgoing>,
}

impl Session {
    /// A session of the worker that said `hello`, which holds nothing yet.
    pub(crate) fn new(
        hello: v1::Hello,
        only: Option<RunId>,
        since: Timestamp,
        send: mpsc::Sender<Outgoing>,
    ) -> Self {
        Self {
            worker: WorkerName::from(hello.worker),
            instance: hello.instance,
            version: hello.version,
            slots: hello.slots.clamp(1, SLOTS_MAX),
            tags: hello.tags,
            only,
            job: (!hello.job.is_empty()).then(|| hello.job.as_str().into()),
            since,
            begun: false,
            draining: hello.draining,
            replaced: false,
            left: (hello.jobs_max > 0).then_some(hello.jobs_max),
            held: HashSet::new(),
            coming: 0,
            heard: Instant::now(),
            send,
        }
    }

    /// How many jobs more it can be given.
    pub(crate) fn free(&self) -> u32 {
        if !self.begun || self.draining || self.replaced {
            return 0;
        }
        let held = u32::try_from(self.held.len()).unwrap_or(u32::MAX);
        let slots = self.slots.saturating_sub(held).saturating_sub(self.coming);
        self.left.map_or(slots, |left| slots.min(left.saturating_sub(self.coming)))
    }

    /// The one job that it waits for and has not been given.
    pub(crate) fn awaited(&self) -> Option<(RunId, JobName)> {
        let has_it = self.draining || self.replaced || self.left == Some(0);
        let waits = !has_it && self.held.is_empty() && self.coming == 0;
        self.only.clone().zip(self.job.clone()).filter(|_| waits)
    }

    /// Takes an assignment: its slot is taken as long as it is held.
    pub(crate) fn hold(&mut self, key: Key) {
        self.left = self.left.map(|left| left.saturating_sub(1));
        self.held.insert(key);
    }

    /// Whether it is given jobs of `run`.
    pub(crate) fn takes(&self, run: &RunId) -> bool {
        !self.replaced && self.only.as_ref().is_none_or(|only| only == run)
    }

    /// Whether another process of the name of `hello` holds this session, and listens to it.
    pub(crate) fn keeps_out(&self, hello: &v1::Hello) -> bool {
        let same = self.worker.as_str() == hello.worker && !self.replaced;
        same && self.instance != hello.instance && !self.send.is_closed()
    }

    /// What people are shown of it.
    pub(crate) fn view(&self, drained: bool) -> v1::Worker {
        v1::Worker {
            name: self.worker.to_string(),
            tags: self.tags.clone(),
            slots: self.slots,
            running: u32::try_from(self.held.len()).unwrap_or(u32::MAX),
            since: self.since.to_string(),
            version: self.version.clone(),
            draining: self.draining || drained,
            run: self.only.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

/// Refuses workers that this server does not understand, or that have no proper name.
pub(crate) fn check(hello: &v1::Hello) -> Result<(), CommandError> {
    let name = &hello.worker;
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || invisible_in(name).is_some() {
        let bounds = format!("1 to {NAME_BYTES_MAX} bytes without characters that cannot be seen");
        return Err(Refusal::ArgumentOutOfBounds { what: "a worker's name", bounds }.into());
    }
    if hello.version.is_empty() || compatible(&hello.version) {
        return Ok(());
    }
    Err(CommandError::VersionMismatch { server: VERSION, worker: hello.version.clone() })
}

/// Whether a program of this version is understood: major and minor must be the same.
fn compatible(version: &str) -> bool {
    let series = |version: &str| version.splitn(3, '.').take(2).map(str::to_owned).collect();
    let (ours, theirs): (Vec<String>, Vec<String>) = (series(VERSION), series(version));
    ours == theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(instance: &str) -> v1::Hello {
        v1::Hello { worker: "w".into(), slots: 4, instance: instance.into(), ..Default::default() }
    }

    #[test]
    fn a_name_is_kept_from_other_processes_as_long_as_somebody_listens() {
        let (send, receive) = mpsc::channel(1);
        let session = Session::new(hello("one"), None, Timestamp(0), send);

        assert!(session.keeps_out(&hello("two")));
        assert!(!session.keeps_out(&hello("one")), "the same process comes back");
        assert!(!session.keeps_out(&v1::Hello { worker: "v".into(), ..hello("two") }));
        drop(receive);
        assert!(!session.keeps_out(&hello("two")));
    }

    #[test]
    fn names_are_neither_long_nor_invisible() {
        let named = |name: &str| check(&v1::Hello { worker: name.into(), ..hello("one") });
        for name in ["eu-1", "größe 日本", &"x".repeat(NAME_BYTES_MAX)] {
            named(name).unwrap();
        }
        for name in ["", "a\u{200b}", "a\u{202e}b", "a\nb", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(
                named(name).unwrap_err().code().as_str(),
                "ARGUMENT_OUT_OF_BOUNDS",
                "{name:?}"
            );
        }
    }

    #[test]
    fn a_worker_takes_what_its_slots_and_its_bound_allow() {
        let (send, _receive) = mpsc::channel(1);
        let mut session =
            Session::new(v1::Hello { jobs_max: 2, ..hello("one") }, None, Timestamp(0), send);
        let key = |n: u32| Key {
            run: "r".into(),
            job: format!("j{n}").as_str().into(),
            attempt: towpath_engine::ids::Attempt(1),
        };

        assert_eq!(session.free(), 0, "its welcome comes first");
        session.begun = true;
        assert_eq!(session.free(), 2);
        session.hold(key(1));
        session.held.clear();
        assert_eq!(session.free(), 1);
        session.coming = 1;
        assert_eq!(session.free(), 0);
    }

    #[test]
    fn versions_are_told_apart_by_their_first_two_numbers() {
        let series = VERSION.rsplit_once('.').unwrap().0;
        assert!(compatible(&format!("{series}.99")));
        assert!(!compatible(&format!("9{VERSION}")));
        assert!(!compatible("unknown"));
    }
}
