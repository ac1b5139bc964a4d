//! Files of one job that cannot be read any more, and the other jobs of its worker.

use std::{
    collections::BTreeMap, path::PathBuf, pin::Pin, process::Command, sync::Arc, time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};
use towpath_proto::{
    time::duration,
    v1::{
        self,
        failed::Cause,
        report::Ended,
        session_request::Message as ToServer,
        session_response::Message,
        workers_service_server::{WorkersService, WorkersServiceServer},
    },
};
use towpath_tests::RealWorker;
use towpath_wire::dial::dial_tcp;
use towpath_worker::SessionLimits;

/// How long a report may take before the story says that it never came.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A server of two sessions, which records nothing. The first ends when job `a` is reported; the
/// file that it left is a named pipe by then.
#[derive(Clone)]
struct TwoSessions {
    folder: PathBuf,
    sessions: Arc<Mutex<u32>>,
    /// What is reported in the second session, by job.
    reported: mpsc::Sender<(String, Ended)>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn attempt(job: &str) -> Option<v1::AttemptId> {
    Some(v1::AttemptId { run: "r".to_owned(), job: job.to_owned(), attempt: 1 })
}

impl TwoSessions {
    fn assignment(&self, job: &str, script: &str, artifacts: &[&str]) -> Message {
        Message::Assignment(v1::Assignment {
            attempt: attempt(job),
            fence: 1,
            script: script.to_owned(),
            folder: self.folder.display().to_string(),
            artifacts: artifacts.iter().map(|&path| path.to_owned()).collect(),
            ..v1::Assignment::default()
        })
    }

    async fn serve(
        self,
        mut incoming: Streaming<v1::SessionRequest>,
        send: mpsc::Sender<Result<v1::SessionResponse, Status>>,
    ) {
        let mut sessions = self.sessions.lock().await;
        *sessions += 1;
        let first = *sessions == 1;
        let held = if first {
            Vec::new()
        } else {
            vec![v1::HeldAttempt { attempt: attempt("a"), output_bytes: 0 }]
        };
        let welcome = v1::Welcome { held, lease: Some(duration(60_000)) };
        let job = match first {
            true => self.assignment("a", "echo left >f", &["f"]),
            false => self.assignment("b", "true", &[]),
        };
        for message in [Message::Welcome(welcome), job] {
            let message = v1::SessionResponse { message: Some(message) };
            send.send(Ok(message)).await.expect("the worker is there");
        }
        while let Some(Ok(v1::SessionRequest { message })) = incoming.next().await {
            let Some(ToServer::Report(v1::Report { attempt, ended, .. })) = message else {
                continue;
            };
            if first {
                let file = self.folder.join("f");
                std::fs::remove_file(&file).expect("the file that the job left");
                let made = Command::new("mkfifo").arg(&file).status().expect("a program");
                assert!(made.success());
                return;
            }
            let (attempt, ended) = (attempt.expect("an attempt"), ended.expect("an end"));
            drop(self.reported.send((attempt.job, ended)).await);
        }
    }
}

#[tonic::async_trait]
impl WorkersService for TwoSessions {
    type SessionStream = Messages<v1::SessionResponse>;
    type WatchDemandStream = Messages<v1::WatchDemandResponse>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (send, messages) = mpsc::channel(8);
        tokio::spawn(self.clone().serve(request.into_inner(), send));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn drain_worker(
        &self,
        _: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn watch_demand(
        &self,
        _: Request<v1::WatchDemandRequest>,
    ) -> Result<Response<Self::WatchDemandStream>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

#[tokio::test]
async fn a_file_that_is_a_pipe_by_now_fails_its_job_and_holds_up_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (reported, mut reports) = mpsc::channel(8);
    let sessions = Arc::default();
    let server = TwoSessions { folder: folder.path().to_owned(), sessions, reported };
    let service = Server::builder().add_service(WorkersServiceServer::new(server));
    let serving = tokio::spawn(service.serve_with_incoming(TcpIncoming::from(listener)));
    let limits = SessionLimits { reconnect: true, ..SessionLimits::default() };

    let channel = dial_tcp(&address).expect("an address");
    let worker = RealWorker::begin_at(channel, "w", 2, folder.path(), limits);
    let mut ends = BTreeMap::new();
    while ends.len() < 2 {
        let report = timeout(WAIT_MAX, reports.recv()).await.expect("each job is reported");
        let (job, ended) = report.expect("the server is there");
        ends.insert(job, ended);
    }

    assert!(matches!(ends["b"], Ended::Succeeded(_)), "{:?}", ends["b"]);
    let Ended::Failed(v1::Failed { cause: Some(Cause::OutputUnusable(why)) }) = &ends["a"] else {
        panic!("{:?}", ends["a"]);
    };
    assert!(why.contains("artifact `f`: it is no file any more"), "{why}");
    worker.kill().await;
    serving.abort();
}
