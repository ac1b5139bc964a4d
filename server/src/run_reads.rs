//! Reads of runs and jobs: as they are, and as they were at an earlier point of the log.

mod explain;
mod gates;
mod list;

use std::sync::Arc;

use prost::Message as _;
use towpath_engine::{ids::RunId, refusal::Refusal, run::Run};
use towpath_proto::v1;
use towpath_storage::{Position, Version};

use crate::{
    command_error::CommandError,
    pages::{PAGE_MAX, PageRequest, PageRoom},
    past_reads::{AsOf, PastReads, PastRun, Point},
    runs::Runs,
    shared_scheduler::SharedScheduler,
    streams::Loaded,
    sync::locked,
    telemetry::calls::RequestRun,
    wire,
};

pub(crate) use list::RunFilter;

/// Reads runs.
#[derive(Clone, Debug)]
pub(crate) struct RunReads {
    runs: Arc<Runs>,
    /// Knows what no run knows: workers, and the locks of other runs.
    scheduler: Arc<SharedScheduler>,
    past: Arc<PastReads>,
}

/// A run as a read sees it.
#[derive(Clone, Copy)]
struct Seen<'a> {
    run: &'a Run,
    version: Version,
    position: Position,
}

/// An answer; `None` beside one of the present.
pub(crate) type Dated<T> = (T, Option<AsOf>);

/// A page of the jobs of a run.
#[derive(Debug, Default)]
pub(crate) struct JobPage {
    pub(crate) run: v1::Run,
    pub(crate) jobs: Vec<v1::Job>,
    /// The token of the next page; empty on the last.
    pub(crate) next: String,
}

impl RunReads {
    pub(crate) fn new(runs: Arc<Runs>, scheduler: Arc<SharedScheduler>) -> Self {
        Self { runs, scheduler, past: Arc::default() }
    }

    /// What `read` sees of run `id`: as it is, or as it was at `point`.
    async fn read<T>(
        &self,
        id: &RunId,
        point: Option<Point>,
        read: impl Fn(Seen<'_>) -> T,
    ) -> Result<Dated<T>, CommandError> {
        let Some(point) = point else {
            let seen = |loaded: &Loaded| {
                let (version, position) = (loaded.version, loaded.position);
                read(Seen { run: &loaded.state, version, position })
            };
            return Ok((self.runs.read_durable(id, seen).await?, None));
        };
        let log = &self.runs.log;
        let past = self.past.read(&*log.store, id, point, log.now()).await?;
        let PastRun { run, version, position } = &past;
        let (asked, time) = match point {
            Point::Position(asked) => (asked, run.newest_at()),
            // The next record after that time may be far away: what was read is what is named.
            Point::Time(time) => (*position, time),
        };
        let as_of = AsOf { position: asked, time: Some(time) };
        Ok((read(Seen { run, version: *version, position: *position }), Some(as_of)))
    }

    /// Run `id` as it is.
    pub(crate) async fn view(&self, id: &RunId) -> Result<v1::Run, CommandError> {
        Ok(self.read(id, None, |seen| self.view_of(id, seen)).await?.0)
    }

    /// As [`RunReads::view`]; links `request` with the span of the run, so that each is found from
    /// the other.
    pub(crate) async fn view_linked(
        &self,
        id: &RunId,
        request: &RequestRun,
    ) -> Result<v1::Run, CommandError> {
        let view = |seen: Seen<'_>| {
            request.link(seen.run);
            self.view_of(id, seen)
        };
        Ok(self.read(id, None, view).await?.0)
    }

    fn view_of(&self, id: &RunId, seen: Seen<'_>) -> v1::Run {
        // The short id depends on the ids of all other runs.
        let list = locked(&self.runs.list);
        wire::run(seen.run, seen.version, seen.position, list.short(id))
    }

    /// The run that `asked` names.
    pub(crate) async fn run(
        &self,
        asked: &str,
        point: Option<Point>,
    ) -> Result<Dated<v1::Run>, CommandError> {
        let id = self.runs.find(asked)?;
        self.read(&id, point, |seen| self.view_of(&id, seen)).await
    }

    /// Job `name` of the run that `asked` names.
    pub(crate) async fn job(
        &self,
        asked: &str,
        name: &str,
        view: v1::JobView,
        point: Option<Point>,
    ) -> Result<Dated<v1::Job>, CommandError> {
        let id = self.runs.find(asked)?;
        let job = |seen: Seen<'_>| seen.run.job(name).map(|job| wire::job(seen.run, job, view));
        let (job, as_of) = self.read(&id, point, job).await?;
        Ok((job.ok_or_else(|| unknown(name))?, as_of))
    }

    /// A page of the jobs of the run that `asked` names, in the order of its file.
    pub(crate) async fn jobs(
        &self,
        asked: &str,
        page: &PageRequest,
        view: v1::JobView,
        point: Option<Point>,
    ) -> Result<Dated<JobPage>, CommandError> {
        let id = self.runs.find(asked)?;
        let size = page.size(PAGE_MAX);
        // Jobs are never removed or moved, so their number is a place that stays.
        let first = page.index()?;
        let jobs = |seen: Seen<'_>| {
            let rest = seen.run.jobs().get(first..).unwrap_or_default();
            let views = rest.iter().map(|job| wire::job(seen.run, job, view));
            let mut room = PageRoom::of(size);
            let jobs: Vec<_> = views.take_while(|job| room.takes(job.encoded_len())).collect();
            let next = first + jobs.len();
            let next = if jobs.len() < rest.len() { next.to_string() } else { String::new() };
            JobPage { run: self.view_of(&id, seen), jobs, next }
        };
        self.read(&id, point, jobs).await
    }
}

fn unknown(job: &str) -> CommandError {
    Refusal::JobUnknown { job: job.into() }.into()
}
