//! Runs as they were at an earlier point of the log: the fold of their records up to there.

use tokio::sync::Semaphore;
use towpath_engine::{
    aggregate::stream_of, codec, event::RunEvent, ids::RunId, run::Run, time::Timestamp,
};
use towpath_storage::{EventStore, Position, Record, Version};

use crate::command_error::CommandError;

/// Records read at a time. Between two pages other requests have their turn.
const PAGE: usize = 512;
/// Folds at once. Each holds a run of up to 200,000 jobs in memory and takes most of a core, and
/// what waits for its turn is bounded by the requests of each connection and by their time.
const AT_ONCE_MAX: usize = 2;

/// Where in the log to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// After this position.
    Position(Position),
    /// After the last record that was decided at or before this time.
    Time(Timestamp),
}

/// Which point of the past an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AsOf {
    /// The position up to which the log was read.
    pub(crate) position: Position,
    /// The time up to which; `None`: it is not known of a list that was read up to a position.
    pub(crate) time: Option<Timestamp>,
}

/// A run as it was.
#[derive(Debug)]
pub(crate) struct PastRun {
    pub(crate) run: Run,
    /// The newest version of its stream by then.
    pub(crate) version: Version,
    /// The position of that record.
    pub(crate) position: Position,
}

/// Reads of the past that are under way.
#[derive(Debug)]
pub(crate) struct PastReads {
    turns: Semaphore,
}

impl Default for PastReads {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_ONCE_MAX) }
    }
}

impl PastReads {
    /// Run `id` at `point`. `now` is the log's time: what is after it is refused, because the answer
    /// would be another one later.
    pub(crate) async fn read(
        &self,
        store: &dyn EventStore,
        id: &RunId,
        point: Point,
        now: Timestamp,
    ) -> Result<PastRun, CommandError> {
        check(store, point, now)?;
        // The semaphore is never closed; if it were, reading without a turn would be right.
        let _turn = self.turns.acquire().await;
        let mut past = PastRun { run: Run::default(), version: 0, position: 0 };
        'pages: loop {
            let page = store.read(&stream_of::<Run>(id), past.version, PAGE).await?;
            if page.is_empty() {
                break;
            }
            for record in page {
                if !past.take(id, &record, point)? {
                    break 'pages;
                }
            }
        }
        if past.version == 0 {
            let why = format!("run `{id}` was started later");
            return Err(CommandError::AtOutOfRange { at: point.to_string(), why });
        }
        Ok(past)
    }
}

/// Refuses a point that the log has not reached.
pub(crate) fn check(
    store: &dyn EventStore,
    point: Point,
    now: Timestamp,
) -> Result<(), CommandError> {
    let why = match point {
        Point::Position(position) => {
            let newest = *store.watch().borrow();
            (position == 0 || position > newest)
                .then(|| format!("the newest record of the log is {newest}"))
        }
        Point::Time(time) => (time > now).then(|| format!("the time of the log is {now}")),
    };
    match why {
        Some(why) => Err(CommandError::AtOutOfRange { at: point.to_string(), why }),
        None => Ok(()),
    }
}

impl PastRun {
    /// Takes in `record` unless it is after `point`; says whether it was taken in.
    fn take(&mut self, id: &RunId, record: &Record, point: Point) -> Result<bool, CommandError> {
        let version = record.version;
        let broken =
            |why: String| CommandError::Unreplayable { stream: stream_of::<Run>(id), version, why };
        if matches!(point, Point::Position(position) if record.position > position) {
            return Ok(false);
        }
        let fact =
            codec::decode::<RunEvent>(&record.bytes).map_err(|error| broken(error.to_string()))?;
        // Times never go backwards in the log: the first that is later ends the past.
        if matches!(point, Point::Time(time) if fact.at > time) {
            return Ok(false);
        }
        self.run.evolve(&fact).map_err(|error| broken(error.to_string()))?;
        (self.version, self.position) = (version, record.position);
        Ok(true)
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Position(position) => write!(f, "position {position}"),
            Self::Time(time) => write!(f, "time {time}"),
        }
    }
}
