//! The gRPC face. Every handler reads the same way: wire in, call, wire out.
//!
//! The struct of each service names in its fields the parts that its handlers call, and no other.

mod blobs;
mod gates;
mod keda;
mod log;
mod runs;
mod workers;

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, service::Routes};
use towpath_proto::{
    externalscaler::external_scaler_server::ExternalScalerServer,
    v1::{
        blobs_service_server::BlobsServiceServer, gates_service_server::GatesServiceServer,
        log_service_server::LogServiceServer, runs_service_server::RunsServiceServer,
        workers_service_server::WorkersServiceServer,
    },
};

use crate::{
    command_error::CommandError,
    limits::{ANSWER_BYTES_MAX, MESSAGE_BYTES_MAX, RUNS_MESSAGE_BYTES_MAX},
    status,
};

pub(crate) use blobs::BlobsApi;
pub(crate) use gates::GatesApi;
pub(crate) use keda::KedaApi;
pub(crate) use log::LogApi;
pub(crate) use runs::RunsApi;
pub(crate) use workers::WorkersApi;

/// Messages that may wait for a client that reads slowly; beyond that the producer waits.
const STREAM_QUEUE: usize = 64;
/// The same for pieces of output and of files, which are large.
const CHUNK_QUEUE: usize = 4;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The services of the contract.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    pub(crate) runs: RunsApi,
    pub(crate) gates: GatesApi,
    pub(crate) log: LogApi,
    pub(crate) workers: WorkersApi,
    pub(crate) blobs: BlobsApi,
    pub(crate) keda: KedaApi,
}

impl Services {
    /// The services by their paths, with the bounds of their messages.
    pub(crate) fn routes(&self) -> Routes {
        macro_rules! bounded {
            ($service:expr, $asked:expr, $answered:expr) => {
                $service.max_decoding_message_size($asked).max_encoding_message_size($answered)
            };
            ($service:expr) => {
                bounded!($service, MESSAGE_BYTES_MAX, ANSWER_BYTES_MAX)
            };
        }
        let Self { runs, gates, log, workers, blobs, keda } = self.clone();
        // Only these messages carry a whole pipeline file.
        let runs = RunsServiceServer::new(runs);
        Routes::new(bounded!(runs, RUNS_MESSAGE_BYTES_MAX, RUNS_MESSAGE_BYTES_MAX))
            .add_service(bounded!(GatesServiceServer::new(gates)))
            .add_service(bounded!(LogServiceServer::new(log)))
            .add_service(bounded!(WorkersServiceServer::new(workers)))
            .add_service(bounded!(BlobsServiceServer::new(blobs)))
            .add_service(bounded!(ExternalScalerServer::new(keda)))
    }
}

/// A bounded stream of what a part of the server produces, and where it puts that. The part knows
/// nothing of messages: `message` makes them as the client takes them.
fn streamed<T: Send + 'static, M>(
    most: usize,
    message: impl Fn(T) -> M + Send + 'static,
) -> (mpsc::Sender<Result<T, CommandError>>, Streamed<M>) {
    let (send, receive) = mpsc::channel(most);
    let messages = ReceiverStream::new(receive)
        .map(move |produced: Result<T, CommandError>| produced.map(&message).map_err(status::of));
    (send, Box::pin(messages))
}
