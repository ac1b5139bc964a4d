//! The list of runs, newest first.

use std::collections::VecDeque;

use prost::Message as _;
use towpath_engine::{event::RunOutcome, ids::RunId, run::Run, views::Listed};
use towpath_proto::v1;

use super::{Dated, RunReads};
use crate::{
    command_error::CommandError,
    pages::{PageRequest, PageRoom, token_invalid},
    past_reads::{self, AsOf, Point},
    sync::locked,
    wire,
};

/// Runs of a page when no number is asked for.
const RUNS_DEFAULT: u32 = 50;
/// Most runs of one page of the past, each of which may have to be replayed.
const PAST_RUNS_MAX: usize = 50;

/// Which runs a list is to have. Empty: all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunFilter {
    pub(crate) phases: Vec<v1::RunPhase>,
    pub(crate) outcomes: Vec<v1::RunOutcome>,
}

/// A page of a list of runs.
#[derive(Debug, Default)]
pub(crate) struct RunPage {
    pub(crate) runs: Vec<v1::Run>,
    /// The token of the next page; empty on the last.
    pub(crate) next: String,
}

impl RunFilter {
    fn is_empty(&self) -> bool {
        self.phases.is_empty() && self.outcomes.is_empty()
    }

    fn fits(&self, run: &v1::Run) -> bool {
        self.is_empty()
            || self.phases.contains(&run.phase())
            || self.outcomes.contains(&run.outcome())
    }

    /// Whether a run that ended like this may fit. It may turn out to be damaged.
    fn fits_ended(&self, outcome: RunOutcome) -> bool {
        let phases = [v1::RunPhase::Finished, v1::RunPhase::Damaged];
        self.is_empty()
            || phases.iter().any(|phase| self.phases.contains(phase))
            || self.outcomes.contains(&wire::outcome(outcome))
    }
}

impl RunReads {
    /// The runs that fit `filter`, as they are, or as they were at `point`.
    pub(crate) async fn list(
        &self,
        filter: &RunFilter,
        page: &PageRequest,
        point: Option<Point>,
    ) -> Result<Dated<RunPage>, CommandError> {
        let mut size = page.size(RUNS_DEFAULT);
        if let Some(point) = point {
            let log = &self.runs.log;
            past_reads::check(&*log.store, point, log.now())?;
            size = size.min(PAST_RUNS_MAX);
        }
        let mut before = (!page.token.is_empty()).then(|| RunId::from(page.token.as_str()));
        let (mut answer, mut room) = (RunPage::default(), PageRoom::of(size));
        let mut ids = VecDeque::new();
        loop {
            // A page of ids at a time: a list may have a million of them.
            if ids.is_empty() {
                ids = self.candidates(before.as_ref(), filter, point, size + 1)?;
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
            if !filter.fits(&run) {
                continue;
            }
            // The stages of a run alone may be 60 KiB.
            if !room.takes(run.encoded_len()) {
                // Only now is it known that another one fits: a token of a full page that is the
                // last would lead to an empty one.
                let last = answer.runs.last();
                answer.next = last.map(|run| run.id.clone()).unwrap_or_default();
                break;
            }
            answer.runs.push(run);
        }
        let newest = answer.runs.iter().map(|run| run.position).max().unwrap_or_default();
        let as_of = point.map(|point| match point {
            Point::Position(position) => AsOf { position, time: None },
            Point::Time(time) => AsOf { position: newest, time: Some(time) },
        });
        Ok((answer, as_of))
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
        let newest = locked(&self.runs.list).get(id).map(|listed| listed.position);
        if let (Point::Position(position), Some(newest)) = (point, newest)
            && newest <= position
        {
            return self.run_now(id).await;
        }
        Ok(self.read(id, Some(point), |seen| self.view_of(id, seen)).await?.0)
    }

    /// The `most` newest runs that began before `before`, of those that may fit.
    fn candidates(
        &self,
        before: Option<&RunId>,
        filter: &RunFilter,
        point: Option<Point>,
        most: usize,
    ) -> Result<VecDeque<RunId>, CommandError> {
        let list = locked(&self.runs.list);
        // A run that has ended is known by its outcome; only the others must be read.
        let may_fit = |listed: &&Listed<Run>| match (point, &listed.summary.end) {
            (Some(Point::Position(position)), _) => listed.created <= position,
            (Some(Point::Time(time)), _) => listed.summary.header.created_at <= time,
            (None, Some(end)) => filter.fits_ended(end.outcome),
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
        if locked(&self.runs.set_aside).contains_key(id) {
            return None;
        }
        let list = locked(&self.runs.list);
        wire::summary(list.get(id)?, list.short(id))
    }

    /// What is known of a run whose records cannot be replayed.
    fn damaged(&self, id: &RunId) -> v1::Run {
        let list = locked(&self.runs.list);
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
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use tonic::Request;
    use towpath_proto::v1::runs_service_client::RunsServiceClient;

    use super::*;
    use crate::{Server, SystemClock};

    const FILE: &str =
        "version: \"1.0\"\nstages: [s]\njobs:\n  a: {stage: s, command: x, on_failure: abort}\n";

    async fn open(folder: &Path) -> Server {
        let url = format!("sled:{}", folder.display());
        Server::open(&url, Arc::new(SystemClock)).await.unwrap()
    }

    async fn list(server: &Server) -> Vec<v1::Run> {
        let request = Request::new(v1::ListRunsRequest::default());
        let mut runs = RunsServiceClient::new(server.connect());
        runs.list_runs(request).await.unwrap().into_inner().runs
    }

    #[tokio::test]
    async fn a_list_reads_no_run_that_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let server = open(folder.path()).await;
        let mut runs = RunsServiceClient::new(server.connect());
        let file = v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            folder: "/".to_owned(),
            content: FILE.into(),
            ..Default::default()
        };
        let actor = "human:ana".to_owned();
        let start = v1::StartRunRequest {
            file: Some(file),
            parallelism: 1,
            actor: actor.clone(),
            ..Default::default()
        };
        let run = runs.start_run(Request::new(start)).await.unwrap().into_inner().run.unwrap().id;
        let cancel = v1::CancelRunRequest { run: run.clone(), reason: "enough".to_owned(), actor };
        let ended = runs.cancel_run(Request::new(cancel)).await.unwrap().into_inner().run.unwrap();
        assert_eq!(
            list(&server).await,
            std::slice::from_ref(&ended),
            "the list shows what the run shows"
        );
        drop(runs);
        server.close().await;
        drop(server);

        let server = open(folder.path()).await;
        assert_eq!(list(&server).await, [ended]);
        assert!(locked(&server.runs().cells).all().is_empty(), "nothing was replayed");
        server.close().await;
    }

    #[test]
    fn a_run_fits_by_its_phase_or_by_its_outcome() {
        use v1::{RunOutcome as O, RunPhase as P};
        let run = |phase: P, outcome: O| v1::Run {
            phase: phase.into(),
            outcome: outcome.into(),
            ..v1::Run::default()
        };
        let of = |phases: &[P], outcomes: &[O]| RunFilter {
            phases: phases.to_vec(),
            outcomes: outcomes.to_vec(),
        };
        let (running, failed) = (run(P::Running, O::Unspecified), run(P::Finished, O::Failed));
        assert!(of(&[], &[]).fits(&running) && of(&[], &[]).fits(&failed));
        let either = of(&[P::Running], &[O::Failed]);
        assert!(either.fits(&running) && either.fits(&failed));
        assert!(!of(&[P::Aborting], &[O::Succeeded]).fits(&failed));
    }

    #[test]
    fn an_ended_run_is_read_if_it_may_turn_out_to_be_damaged() {
        let damaged = RunFilter { phases: vec![v1::RunPhase::Damaged], outcomes: Vec::new() };
        let running = RunFilter { phases: vec![v1::RunPhase::Running], outcomes: Vec::new() };
        assert!(damaged.fits_ended(RunOutcome::Succeeded));
        assert!(!running.fits_ended(RunOutcome::Succeeded), "it is not read at all");
    }
}
