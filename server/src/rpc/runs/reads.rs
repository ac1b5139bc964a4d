//! Reads of runs and jobs, and how a list is cut into pages.

use prost::Message as _;
use towpath_engine::{
    event::RunOutcome,
    ids::RunId,
    refusal::Refusal,
    run::Run,
    views::{self, Listed, Surroundings},
};
use towpath_proto::v1;

use crate::{Server, command_error::CommandError, streams::Loaded, sync::locked, wire};

/// Most runs, jobs or gates of one page.
pub(in crate::rpc) const PAGE_MAX: u32 = 1_000;
/// Runs of a page when nobody says how many.
const RUNS_DEFAULT: u32 = 50;
/// Most bytes of the jobs of one page. Source: a client reads messages of 4 MiB, and a job with all
/// that it runs may have more than 100 KiB.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

impl Server {
    /// The one run that `asked` names.
    pub(crate) fn find(&self, asked: &str) -> Result<RunId, CommandError> {
        Ok(locked(&self.runs().list).find(asked)?)
    }

    /// A run as it is.
    pub(in crate::rpc) async fn view(&self, id: &RunId) -> Result<v1::Run, CommandError> {
        self.runs().read_durable(id, |loaded| self.view_of(id, loaded)).await
    }

    fn view_of(&self, id: &RunId, loaded: &Loaded) -> v1::Run {
        let list = locked(&self.runs().list);
        wire::run(&loaded.state, loaded.version, loaded.position, list.short(id))
    }

    pub(super) async fn list(
        &self,
        request: v1::ListRunsRequest,
    ) -> Result<v1::ListRunsResponse, CommandError> {
        let asked = Filter::of(&request);
        let size = page_size(request.page_size, RUNS_DEFAULT);
        let ids = self.listed(&request.page_token, &asked)?;
        let mut answer = v1::ListRunsResponse::default();
        for id in ids {
            // A run that has ended is not replayed for a list: it may have 200,000 jobs.
            let run = match self.ended(&id) {
                Some(run) => run,
                None => match self.view(&id).await {
                    Ok(run) => run,
                    // The others are listed all the same.
                    Err(CommandError::Unreplayable { .. }) => self.damaged(&id),
                    Err(error) => return Err(error),
                },
            };
            if !asked.fits(&run) {
                continue;
            }
            if answer.runs.len() == size {
                let last = answer.runs.last();
                answer.next_page_token = last.map(|run| run.id.clone()).unwrap_or_default();
                break;
            }
            answer.runs.push(run);
        }
        Ok(answer)
    }

    /// The runs after the page that `token` ends, as far as they may fit.
    fn listed(&self, token: &str, asked: &Filter) -> Result<Vec<RunId>, CommandError> {
        let list = locked(&self.runs().list);
        let all = list.newest_first();
        let rest: Vec<&Listed<Run>> = if token.is_empty() {
            all.collect()
        } else {
            let last = RunId::from(token);
            list.get(&last).ok_or_else(|| token_invalid(token))?;
            all.skip_while(|listed| listed.id != last).skip(1).collect()
        };
        // A run that has ended is known by its outcome; only the others must be read.
        let may_fit = |listed: &&Listed<Run>| match &listed.summary.end {
            Some(end) => asked.fits_ended(end.outcome),
            None => true,
        };
        Ok(rest.into_iter().filter(may_fit).map(|listed| listed.id.clone()).collect())
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
        let view = request.view();
        let id = self.find(&request.run)?;
        let job = |loaded: &Loaded| {
            loaded.state.job(&request.job).map(|job| wire::job(&loaded.state, job, view))
        };
        let job = self.runs().read_durable(&id, job).await?;
        let job = job.ok_or_else(|| unknown(&request.job))?;
        Ok(v1::GetJobResponse { job: Some(job) })
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
        let page = |loaded: &Loaded| {
            let rest = loaded.state.jobs().get(first..).unwrap_or_default();
            let mut answer = v1::ListJobsResponse::default();
            let mut bytes = 0;
            for job in rest.iter().take(size) {
                let job = wire::job(&loaded.state, job, view);
                bytes += job.encoded_len();
                if bytes > PAGE_BYTES_MAX && !answer.jobs.is_empty() {
                    break;
                }
                answer.jobs.push(job);
            }
            if answer.jobs.len() < rest.len() {
                answer.next_page_token = (first + answer.jobs.len()).to_string();
            }
            answer.run = Some(self.view_of(&id, loaded));
            answer
        };
        self.runs().read_durable(&id, page).await
    }

    pub(super) async fn explain(
        &self,
        request: v1::ExplainJobRequest,
    ) -> Result<v1::ExplainJobResponse, CommandError> {
        let v1::ExplainJobRequest { run, job } = request;
        let id = self.find(&run)?;
        let explained = |loaded: &Loaded| {
            let known = loaded.state.job(&job)?;
            let lock = known.plan.resource.as_ref().map(|lock| lock.name.as_str());
            let holder = known.state.lease().map(|(_, worker)| worker);
            let locks_of_others = self.scheduler().locks_of_others(&id, lock);
            let around = self.scheduler().inspect(|all| Surroundings {
                now: self.runs().log.now(),
                locks_of_others: &locks_of_others,
                holder_connected: holder.is_some_and(|worker| all.worker(worker).is_some()),
                workers: all.worker_supply(&id, &known.plan.tags),
                leasing_paused: all.is_leasing_paused(),
            });
            let reason = views::explain(&loaded.state, known, &around);
            Some(v1::ExplainJobResponse {
                job: Some(wire::job(&loaded.state, known, v1::JobView::Basic)),
                explanation: Some(wire::explanation(&loaded.state, &reason)),
                run: Some(self.view_of(&id, loaded)),
            })
        };
        let explained = self.runs().read_durable(&id, explained).await?;
        explained.ok_or_else(|| unknown(&job))
    }
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
