//! Messages on their way to one worker, bounded in bytes: however slowly it reads, the server keeps
//! little for it.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use towpath_proto::v1;

/// Most bytes that wait for one connection to take them; one message may be longer than that, and
/// then waits alone.
const OUTBOX_BYTES_MAX: u32 = 256 * 1024;

/// A message, and its part of the bytes that may wait.
type Entry = (Result<v1::SessionResponse, Status>, Option<OwnedSemaphorePermit>);

/// Where messages for one worker are put.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    worker: Arc<str>,
    /// Unbounded in count: its bytes are bounded by the permits, and only the end has none.
    send: mpsc::UnboundedSender<Entry>,
    bytes: Arc<Semaphore>,
}

/// The other side of an outbox.
pub(crate) type Outgoing = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

/// An outbox for the worker that calls itself `worker`, and the stream that it fills.
pub(crate) fn outbox() -> (Outbox, Outgoing) {
    let (send, receive) = mpsc::unbounded_channel::<Entry>();
    let bytes = Arc::new(Semaphore::new(OUTBOX_BYTES_MAX as usize));
    // The permit goes back when the connection takes the message.
    let outgoing = UnboundedReceiverStream::new(receive).map(|(message, _permit)| message);
    (Outbox { worker: "".into(), send, bytes }, Box::pin(outgoing))
}

impl Outbox {
    /// The same outbox, of a worker that has said its name.
    pub(crate) fn named(self, worker: &str) -> Self {
        Self { worker: worker.into(), ..self }
    }

    /// What the worker calls itself.
    pub(crate) fn worker(&self) -> String {
        self.worker.to_string()
    }

    /// Puts a message in as soon as there is room; returns whether the other side can still receive
    /// it.
    pub(crate) async fn send(&self, message: v1::SessionResponse) -> bool {
        let bytes = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        // A message larger than the whole bound must still pass, alone; and an empty one must
        // count, or the queue would have no bound.
        let bytes = bytes.clamp(1, OUTBOX_BYTES_MAX);
        tokio::select! {
            () = self.closed() => false,
            permit = Arc::clone(&self.bytes).acquire_many_owned(bytes) => {
                permit.is_ok_and(|permit| self.send.send((Ok(message), Some(permit))).is_ok())
            }
        }
    }

    /// Puts a message in if there is room now. If there is none, the worker has others to read.
    pub(crate) fn try_send(&self, message: v1::SessionResponse) {
        let bytes = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        let bytes = bytes.clamp(1, OUTBOX_BYTES_MAX);
        if let Ok(permit) = Arc::clone(&self.bytes).try_acquire_many_owned(bytes) {
            // The worker is not there any more: its session ends elsewhere.
            drop(self.send.send((Ok(message), Some(permit))));
        }
    }

    /// The last that the worker hears, if there is anything to be said.
    pub(crate) fn end(&self, status: Option<Status>) {
        if let Some(status) = status {
            // The worker is disconnected and gets nothing.
            let _ = self.send.send((Err(status), None));
        }
    }

    /// Whether the other side is disconnected.
    pub(crate) fn is_closed(&self) -> bool {
        self.send.is_closed()
    }

    /// Waits until the other side is disconnected.
    pub(crate) async fn closed(&self) {
        self.send.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn message(bytes: usize) -> v1::SessionResponse {
        let of = v1::AttemptId { run: "r".repeat(bytes), ..v1::AttemptId::default() };
        v1::SessionResponse { message: Some(v1::session_response::Message::Recorded(of)) }
    }

    #[tokio::test]
    async fn what_a_worker_does_not_read_is_bounded_in_bytes() {
        let (outbox, mut outgoing) = outbox();

        let sent =
            (0..100).take_while(|_| outbox.send(message(64 * 1024)).now_or_never().is_some());
        assert_eq!(sent.count(), 3, "256 KiB, with what a message takes beside its text");
        outgoing.next().await.unwrap().unwrap();
        assert_eq!(outbox.send(message(64 * 1024)).now_or_never(), Some(true));
        while outgoing.next().now_or_never().is_some() {}
        assert_eq!(outbox.send(message(4_000_000)).now_or_never(), Some(true), "a long one alone");
        assert_eq!(outbox.send(message(1)).now_or_never(), None);
        outbox.try_send(message(1));
        assert!(outgoing.next().await.unwrap().is_ok());
        assert!(outgoing.next().now_or_never().is_none(), "there was no room for it");
    }

    #[tokio::test]
    async fn nothing_waits_for_a_worker_that_is_not_there() {
        let (outbox, outgoing) = outbox();
        assert!(outbox.send(message(300_000)).await);
        drop(outgoing);
        assert!(!outbox.send(message(300_000)).await);
        assert!(outbox.is_closed());
    }
}
