//! Reads of runs and jobs, and how a list is cut into pages.

use std::collections::VecDeque;

use prost::Message as _;
use towpath_engine::{
    event::RunOutcome,
    ids::RunId,
    refusal::Refusal,
    run::{Job, LockUsage, Run},
    views::{self, Listed, Surroundings, WaitReason, WorkerSupply},
};
use towpath_proto::v1;
use towpath_storage::{Position, Version};

use crate::{
    Server,
    command_error::CommandError,
    past_reads::{self, PastRun, Point},
    streams::Loaded,
    sync::locked,
    wire,
};

/// Most runs, jobs or gates of one page.
pub(in crate::rpc) const PAGE_MAX: u32 = 1_000;
/// Runs of a page when nobody says how many.
const RUNS_DEFAULT: u32 = 50;
/// Most runs of one page of the past, each of which may have to be replayed.
const PAST_RUNS_MAX: usize = 50;
/// Most bytes of the jobs of one page. Source: a client reads messages of 4 MiB, and a job with all
/// that it runs may have more than 100 KiB.
pub(in crate::rpc) const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

impl Server {
    /// The one run that `asked` names.
    pub(crate) fn find(&self, asked: &str) -> Result<RunId, CommandError> {
        self.runs().find(asked)
    }

    /// A run as it is.
    pub(in crate::rpc) async fn view(&self, id: &RunId) -> Result<v1::Run, CommandError> {
        Ok(self.read_run(id, None, |seen| self.view_of(id, seen)).await?.0)
    }

    fn view_of(&self, id: &RunId, seen: Seen<'_>) -> v1::Run {
        let list = locked(&self.runs().list);
        wire::run(seen.run, seen.version, seen.position, list.short(id))
    }

    /// What `read` sees of run `id`: as it is, or as it was at `point`.
    pub(in crate::rpc) async fn read_run<T>(
        &self,
        id: &RunId,
        point: Option<Point>,
        read: impl Fn(Seen<'_>) -> T,
    ) -> Result<(T, Option<v1::AsOf>), CommandError> {
        let Some(point) = point else {
            let seen = |loaded: &Loaded| {
                let (version, position) = (loaded.version, loaded.position);
                read(Seen { run: &loaded.state, version, position })
            };
            return Ok((self.runs().read_durable(id, seen).await?, None));
        };
        let log = &self.runs().log;
        let past = self.past_reads().read(&*log.store, id, point, log.now()).await?;
        let PastRun { run, version, position } = &past;
        let (asked, time) = match point {
            Point::Position(asked) => (asked, run.newest_at()),
            Point::Time(time) => (*position, time),
        };
        let as_of = v1::AsOf { position: asked, time: Some(wire::time(time)) };
        Ok((read(Seen { run, version: *version, position: *position }), Some(as_of)))
    }

    pub(super) async fn get(
        &self,
        request: v1::GetRunRequest,
    ) -> Result<v1::GetRunResponse, CommandError> {
        let id = self.find(&request.run)?;
        let point = wire::point(request.at)?;
        let (run, as_of) = self.read_run(&id, point, |seen| self.view_of(&id, seen)).await?;
        Ok(v1::GetRunResponse { run: Some(run), as_of })
    }

    pub(super) async fn list(
        &self,
        request: v1::ListRunsRequest,
    ) -> Result<v1::ListRunsResponse, CommandError> {
        let asked = Filter::of(&request);
        let point = wire::point(request.at)?;
        let mut size = page_size(request.page_size, RUNS_DEFAULT);
        if let Some(point) = point {
            let log = &self.runs().log;
            past_reads::check(&*log.store, point, log.now())?;
            size = size.min(PAST_RUNS_MAX);
        }
        let mut before =
            (!request.page_token.is_empty()).then(|| RunId::from(request.page_token.as_str()));
        let (mut answer, mut bytes) = (v1::ListRunsResponse::default(), 0);
        let mut ids = VecDeque::new();
        loop {
            // A page of ids at a time: a list may have a million of them.
            if ids.is_empty() {
                ids = self.listed(before.as_ref(), &asked, point, size + 1)?;
            }
            let Some(id) = ids.pop_front() else { break };
            before = Some(id.clone());
            let run = match point {
                Some(point) => self.run_at(&id, point).await,
                None => self.run_now(&id).await,
            };
            let run = match run {
                Ok(run) => run,
                // The others are listed all the same.
                Err(CommandError::Unreplayable { .. }) => self.damaged(&id),
                Err(error) => return Err(error),
            };
            if !asked.fits(&run) {
                continue;
            }
            bytes += run.encoded_len();
            // The stages of a run alone may be 60 KiB.
            let is_full = bytes > PAGE_BYTES_MAX && !answer.runs.is_empty();
            if is_full || answer.runs.len() == size {
                let last = answer.runs.last();
                answer.next_page_token = last.map(|run| run.id.clone()).unwrap_or_default();
                break;
            }
            answer.runs.push(run);
        }
        answer.as_of = point.map(|point| match point {
            Point::Position(position) => v1::AsOf { position, time: None },
            Point::Time(time) => v1::AsOf {
                position: answer.runs.iter().map(|run| run.position).max().unwrap_or_default(),
                time: Some(wire::time(time)),
            },
        });
        Ok(answer)
    }

    /// A run as it is. One that has ended is not replayed for a list: it may have 200,000 jobs.
    async fn run_now(&self, id: &RunId) -> Result<v1::Run, CommandError> {
        match self.ended(id) {
            Some(run) => Ok(run),
            None => self.view(id).await,
        }
    }

    /// A run as it was at `point`. One that has not changed since is not replayed.
    async fn run_at(&self, id: &RunId, point: Point) -> Result<v1::Run, CommandError> {
        let newest = locked(&self.runs().list).get(id).map(|listed| listed.position);
        if let (Point::Position(position), Some(newest)) = (point, newest)
            && newest <= position
        {
            return self.run_now(id).await;
        }
        Ok(self.read_run(id, Some(point), |seen| self.view_of(id, seen)).await?.0)
    }

    /// The `most` newest runs that began before `before`, of those that may fit.
    fn listed(
        &self,
        before: Option<&RunId>,
        asked: &Filter,
        point: Option<Point>,
        most: usize,
    ) -> Result<VecDeque<RunId>, CommandError> {
        let list = locked(&self.runs().list);
        // A run that has ended is known by its outcome; only the others must be read.
        let may_fit = |listed: &&Listed<Run>| match (point, &listed.summary.end) {
            (Some(Point::Position(position)), _) => listed.created <= position,
            (Some(Point::Time(time)), _) => listed.summary.header.created_at <= time,
            (None, Some(end)) => asked.fits_ended(end.outcome),
            (None, None) => true,
        };
        let id = |listed: &Listed<Run>| listed.id.clone();
        match before {
            None => Ok(list.newest_first().filter(may_fit).take(most).map(id).collect()),
            Some(last) => {
                let rest = list.before(last).ok_or_else(|| token_invalid(last.as_str()))?;
                Ok(rest.filter(may_fit).take(most).map(id).collect())
            }
        }
    }

    /// A run that has ended, as the list of runs has it. One that is set aside is not: its end may
    /// be what cannot be replayed.
    fn ended(&self, id: &RunId) -> Option<v1::Run> {
        if locked(&self.runs().set_aside).contains_key(id) {
            return None;
        }
        let list = locked(&self.runs().list);
        wire::summary(list.get(id)?, list.short(id))
    }

    /// What is known of a run whose records cannot be replayed.
    fn damaged(&self, id: &RunId) -> v1::Run {
        let list = locked(&self.runs().list);
        let header = list.get(id).map(|listed| &listed.summary.header);
        v1::Run {
            id: id.to_string(),
            short_id: list.short(id).to_owned(),
            phase: v1::RunPhase::Damaged.into(),
            pipeline: header.map(|known| known.pipeline.clone()).unwrap_or_default(),
            requested_by: header.map(|known| known.requested_by.to_string()).unwrap_or_default(),
            created_at: header.map(|known| wire::time(known.created_at)),
            counts: Some(v1::JobCounts::default()),
            ..v1::Run::default()
        }
    }

    pub(super) async fn job(
        &self,
        request: v1::GetJobRequest,
    ) -> Result<v1::GetJobResponse, CommandError> {
        let (view, point) = (request.view(), wire::point(request.at)?);
        let id = self.find(&request.run)?;
        let job =
            |seen: Seen<'_>| seen.run.job(&request.job).map(|job| wire::job(seen.run, job, view));
        let (job, as_of) = self.read_run(&id, point, job).await?;
        let job = job.ok_or_else(|| unknown(&request.job))?;
        Ok(v1::GetJobResponse { job: Some(job), as_of })
    }

    pub(super) async fn jobs(
        &self,
        request: v1::ListJobsRequest,
    ) -> Result<v1::ListJobsResponse, CommandError> {
        let (view, token) = (request.view(), request.page_token.as_str());
        let id = self.find(&request.run)?;
        let size = page_size(request.page_size, PAGE_MAX);
        let first: usize = match token {
            "" => 0,
            token => token.parse().map_err(|_| token_invalid(token))?,
        };
        let point = wire::point(request.at)?;
        let page = |seen: Seen<'_>| {
            let rest = seen.run.jobs().get(first..).unwrap_or_default();
            let mut answer = v1::ListJobsResponse::default();
            let mut bytes = 0;
            for job in rest.iter().take(size) {
                let job = wire::job(seen.run, job, view);
                bytes += job.encoded_len();
                if bytes > PAGE_BYTES_MAX && !answer.jobs.is_empty() {
                    break;
                }
                answer.jobs.push(job);
            }
            if answer.jobs.len() < rest.len() {
                answer.next_page_token = (first + answer.jobs.len()).to_string();
            }
            answer.run = Some(self.view_of(&id, seen));
            answer
        };
        let (answer, as_of) = self.read_run(&id, point, page).await?;
        Ok(v1::ListJobsResponse { as_of, ..answer })
    }

    pub(super) async fn explain(
        &self,
        request: v1::ExplainJobRequest,
    ) -> Result<v1::ExplainJobResponse, CommandError> {
        let v1::ExplainJobRequest { run, job, at } = request;
        let (id, point) = (self.find(&run)?, wire::point(at)?);
        let explained = |seen: Seen<'_>| {
            let known = seen.run.job(&job)?;
            let reason = match point {
                Some(point) => Self::reason_then(&seen, known, point),
                None => self.reason_now(&id, &seen, known),
            };
            Some(v1::ExplainJobResponse {
                job: Some(wire::job(seen.run, known, v1::JobView::Basic)),
                explanation: Some(wire::explanation(seen.run, &reason)),
                run: Some(self.view_of(&id, seen)),
                as_of: None,
            })
        };
        let (explained, as_of) = self.read_run(&id, point, explained).await?;
        let explained = explained.ok_or_else(|| unknown(&job))?;
        Ok(v1::ExplainJobResponse { as_of, ..explained })
    }

    fn reason_now(&self, id: &RunId, seen: &Seen<'_>, job: &Job) -> WaitReason {
        let lock = job.plan.resource.as_ref().map(|lock| lock.name.as_str());
        let holder = job.state.lease().map(|(_, worker)| worker);
        let locks_of_others = self.scheduler().locks_of_others(id, lock);
        let around = self.scheduler().inspect(|all| Surroundings {
            now: self.runs().log.now(),
            locks_of_others: &locks_of_others,
            holder_connected: holder.is_some_and(|worker| all.worker(worker).is_some()),
            workers: all.worker_supply(id, &job.plan.tags),
            leasing_paused: all.is_leasing_paused(),
        });
        views::explain(seen.run, job, &around)
    }

    /// What a job waited for, as far as its own run tells: neither workers nor other runs are in its
    /// records, so that it is said to wait for a slot where it was ready.
    fn reason_then(seen: &Seen<'_>, job: &Job, point: Point) -> WaitReason {
        let around = Surroundings {
            now: match point {
                Point::Position(_) => seen.run.newest_at(),
                Point::Time(time) => time,
            },
            locks_of_others: &LockUsage::default(),
            holder_connected: true,
            workers: WorkerSupply::Fitting,
            leasing_paused: false,
        };
        views::explain(seen.run, job, &around)
    }
}

/// A run as a read sees it.
#[derive(Clone, Copy)]
pub(in crate::rpc) struct Seen<'a> {
    pub(in crate::rpc) run: &'a Run,
    version: Version,
    position: Position,
}

/// Which runs a list is to have.
struct Filter {
    phases: Vec<v1::RunPhase>,
    outcomes: Vec<v1::RunOutcome>,
}

impl Filter {
    fn of(request: &v1::ListRunsRequest) -> Self {
        Self { phases: request.phases().collect(), outcomes: request.outcomes().collect() }
    }

    fn fits(&self, run: &v1::Run) -> bool {
        (self.phases.is_empty() && self.outcomes.is_empty())
            || self.phases.contains(&run.phase())
            || self.outcomes.contains(&run.outcome())
    }

    /// Whether a run that ended like this may fit. It may turn out to be damaged.
    fn fits_ended(&self, outcome: RunOutcome) -> bool {
        let phases = [v1::RunPhase::Finished, v1::RunPhase::Damaged];
        (self.phases.is_empty() && self.outcomes.is_empty())
            || phases.iter().any(|phase| self.phases.contains(phase))
            || self.outcomes.contains(&wire::outcome(outcome))
    }
}

/// How many a page has at most, of those that are asked for; 0: `default`.
pub(in crate::rpc) fn page_size(asked: u32, default: u32) -> usize {
    (if asked == 0 { default } else { asked.min(PAGE_MAX) }) as usize
}

/// A token that no answer had.
pub(in crate::rpc) fn token_invalid(token: &str) -> CommandError {
    CommandError::MessageInvalid { what: format!("`{token}` is not the token of a page") }
}

fn unknown(job: &str) -> CommandError {
    Refusal::JobUnknown { job: job.into() }.into()
}
