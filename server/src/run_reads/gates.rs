//! The gates that wait for a person.

use prost::Message as _;
use towpath_engine::{
    ids::{JobName, RunId},
    run::Run,
};
use towpath_proto::v1;
use towpath_storage::{Position, StoreError};

use super::{Dated, RunReads, Seen};
use crate::{
    command_error::CommandError,
    pages::{GateToken, PAGE_MAX, PageRequest, PageRoom},
    past_reads::Point,
    sync::locked,
    telemetry::calls::RequestRun,
    wire,
};

/// Most runs of one page that could not be read.
const UNREAD_MAX: usize = 100;

/// A page of a list of gates.
#[derive(Debug, Default)]
pub(crate) struct GatePage {
    pub(crate) gates: Vec<v1::Gate>,
    /// The token of the next page; empty on the last.
    pub(crate) next: String,
    /// Runs that could not be read, whose gates are therefore not listed.
    pub(crate) unread: Vec<RunId>,
}

impl RunReads {
    /// The gates that wait, oldest run first: of all live runs, or of the one that `asked` names. At
    /// a point of the past, of one run only: which runs were live then is in no view.
    pub(crate) async fn waiting_gates(
        &self,
        asked: &str,
        page: &PageRequest,
        point: Option<Point>,
    ) -> Result<Dated<GatePage>, CommandError> {
        let (size, after) = (page.size(PAGE_MAX), page.gate()?);
        if point.is_some() && asked.is_empty() {
            let what = "gates of the past are listed for one run".to_owned();
            return Err(CommandError::MessageInvalid { what });
        }
        let (mut answer, mut as_of) = (GatePage::default(), None);
        let (is_of_all, mut room) = (asked.is_empty(), PageRoom::of(size));
        for (begun, id) in self.with_gates(asked)? {
            if after.is_some_and(|last| begun < last.begun) {
                continue;
            }
            // One more than fit, to know whether there is another page.
            let waiting = |seen: Seen<'_>| waiting(&id, seen.run, begun, after, size + 1);
            let (waiting, read_as_of) = match self.read(&id, point, waiting).await {
                Ok(read) => read,
                // The gates of the others are listed all the same. This run is named: an approver
                // must not take it for one without gates.
                Err(error)
                    if is_of_all && is_of_one_run(&error) && answer.unread.len() < UNREAD_MAX =>
                {
                    tracing::warn!(run = %id, %error, "gates of a run left out of the list");
                    answer.unread.push(id);
                    continue;
                }
                Err(error) => return Err(error),
            };
            as_of = read_as_of;
            for (place, gate) in waiting {
                // Comments and policies repeat in each gate.
                if !room.takes(gate.encoded_len()) {
                    return Ok((answer, as_of));
                }
                answer.gates.push(gate);
                answer.next = place.to_string();
            }
        }
        answer.next.clear();
        Ok((answer, as_of))
    }

    /// The runs whose gates are asked for, oldest first.
    fn with_gates(&self, asked: &str) -> Result<Vec<(Position, RunId)>, CommandError> {
        let ids = match asked {
            "" => self.runs.live(),
            asked => vec![self.runs.find(asked)?],
        };
        let list = locked(&self.runs.list);
        let begun = |id: &RunId| list.get(id).map_or(0, |listed| listed.created);
        let mut runs: Vec<_> = ids.into_iter().map(|id| (begun(&id), id)).collect();
        runs.sort();
        Ok(runs)
    }

    /// The gate of `job`, if it still waits: another person may have decided it meanwhile. Links
    /// `request` with the span of the run.
    pub(crate) async fn gate_linked(
        &self,
        id: &RunId,
        job: &JobName,
        request: &RequestRun,
    ) -> Result<Option<v1::Gate>, CommandError> {
        let gate = |seen: Seen<'_>| {
            request.link(seen.run);
            let waiting = seen.run.gates().find(|waiting| waiting.plan.name == *job);
            waiting.and_then(|job| wire::gate(id, seen.run, job))
        };
        Ok(self.read(id, None, gate).await?.0)
    }
}

/// The first `most` gates of `run` after `after`, with the place of each.
fn waiting(
    id: &RunId,
    run: &Run,
    begun: Position,
    after: Option<GateToken>,
    most: usize,
) -> Vec<(GateToken, v1::Gate)> {
    let gates = run.gates().filter_map(|job| {
        let nth = run.index_of(job.plan.name.as_str())?;
        let place = GateToken { begun, nth };
        let is_new = after.is_none_or(|last| place > last);
        is_new.then(|| Some((place, wire::gate(id, run, job)?))).flatten()
    });
    gates.take(most).collect()
}

/// Whether `error` may be that of one run alone.
fn is_of_one_run(error: &CommandError) -> bool {
    matches!(
        error,
        CommandError::Unreplayable { .. }
            | CommandError::Contended
            | CommandError::Store(StoreError::Damaged { .. } | StoreError::Unavailable { .. })
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::{Request, Response};
    use towpath_engine::aggregate::stream_of;
    use towpath_proto::v1::{
        gates_service_client::GatesServiceClient, runs_service_client::RunsServiceClient,
    };
    use towpath_storage::NewRecord;

    use super::*;
    use crate::{Server, SystemClock};

    const FILE: &str =
        "version: \"1.0\"\nstages: [s]\njobs:\n  a: {stage: s, command: x, when: manual}\n";

    async fn start(server: &Server) -> v1::Run {
        let file = v1::PipelineFile {
            name: "towpath.yml".to_owned(),
            folder: "/".to_owned(),
            content: FILE.into(),
            ..Default::default()
        };
        let start = v1::StartRunRequest {
            file: Some(file),
            parallelism: 1,
            actor: "human:ana".to_owned(),
            ..Default::default()
        };
        let mut runs = RunsServiceClient::new(server.connect());
        runs.start_run(Request::new(start)).await.unwrap().into_inner().run.unwrap()
    }

    #[tokio::test]
    async fn a_run_that_cannot_be_read_hides_no_gate_of_another() {
        let server = Server::open("memory:", Arc::new(SystemClock)).await.unwrap();
        let (broken, other) = (start(&server).await, start(&server).await);
        let id = RunId::from(broken.id.as_str());
        let records = vec![NewRecord::new("nonsense", "{}")];
        let stream = stream_of::<Run>(&id);
        server.runs().log.store.append(&stream, broken.version, records).await.unwrap();
        // It is read from the log again, which nothing has done since.
        locked(&server.runs().cells).remove(&id);
        let list = async |run: &str| {
            let request = v1::ListGatesRequest { run: run.to_owned(), ..Default::default() };
            let mut gates = GatesServiceClient::new(server.connect());
            gates.list_gates(Request::new(request)).await.map(Response::into_inner)
        };

        let listed = list("").await.unwrap();
        assert_eq!(listed.gates.iter().map(|gate| &gate.run).collect::<Vec<_>>(), [&other.id]);
        assert_eq!(listed.unread_runs, std::slice::from_ref(&broken.id));
        assert!(list(&broken.id).await.is_err(), "asked for alone, it says why");
        server.close().await;
    }
}
