//! The gRPC face. Every handler reads the same way: wire in, execute, wire out.

mod blobs;
mod gates;
mod keda;
mod log;
mod runs;
mod workers;

use std::pin::Pin;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Messages that may wait for a client that reads slowly; beyond that the producer waits.
const STREAM_QUEUE: usize = 64;
/// The same for pieces of output and of files, which are large.
const CHUNK_QUEUE: usize = 4;

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A bounded stream, and where to put what it carries.
fn channel<T: Send + 'static>(most: usize) -> (mpsc::Sender<Result<T, Status>>, Streamed<T>) {
    let (send, receive) = mpsc::channel(most);
    (send, Box::pin(ReceiverStream::new(receive)))
}
