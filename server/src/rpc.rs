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
use tonic::Status;

use crate::{command_error::CommandError, status};

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
