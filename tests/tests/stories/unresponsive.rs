//! Servers that take a worker's connection and do not answer it.

use std::{
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};
use towpath_proto::{
    time::duration,
    v1::{
        self,
        session_response::Message,
        workers_service_server::{WorkersService, WorkersServiceServer},
    },
};
use towpath_tests::RealWorker;
use towpath_wire::dial::dial_tcp;
use towpath_worker::{SessionLimits, WorkerError};

/// Long enough for an answer over loopback.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);
/// A worker waits as long for any message of its server.
const LEASE_MS: u64 = 300;

/// A server that takes sessions and hangs, each a step later than the one before.
#[derive(Clone, Default)]
struct Unresponsive {
    sessions: Arc<AtomicU32>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl WorkersService for Unresponsive {
    type SessionStream = Messages<v1::SessionResponse>;
    type WatchDemandStream = Messages<v1::WatchDemandResponse>;

    async fn session(
        &self,
        _: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        match self.sessions.fetch_add(1, Ordering::SeqCst) {
            0 => pending().await,
            1 => Ok(Response::new(Box::pin(tokio_stream::pending()))),
            2 => {
                let welcome = v1::Welcome { held: Vec::new(), lease: Some(duration(LEASE_MS)) };
                let welcome = v1::SessionResponse { message: Some(Message::Welcome(welcome)) };
                let messages = tokio_stream::once(Ok(welcome)).chain(tokio_stream::pending());
                Ok(Response::new(Box::pin(messages)))
            }
            _ => Err(Status::failed_precondition("the fourth session")),
        }
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
async fn a_worker_leaves_a_server_that_does_not_answer_and_tries_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = Unresponsive::default();
    let service = Server::builder().add_service(WorkersServiceServer::new(server.clone()));
    let serving = tokio::spawn(service.serve_with_incoming(TcpIncoming::from(listener)));
    let limits = SessionLimits {
        reconnect: true,
        answer_within: Some(ANSWER_WITHIN),
        ..SessionLimits::default()
    };

    let channel = dial_tcp(&address).expect("an address");
    let worker = RealWorker::begin_at(channel, "w", 1, folder.path(), limits);

    // No answer at all, no welcome, and nothing after the welcome: each session is given up.
    match worker.ended().await {
        Err(WorkerError::Session(status)) => {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(server.sessions.load(Ordering::SeqCst), 4);
    serving.abort();
}
