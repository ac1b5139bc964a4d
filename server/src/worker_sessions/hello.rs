//! The first message of a session.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use towpath_proto::v1;

use crate::{
    command_error::CommandError,
    limits::Limit,
    wire::{Received, WorkerMessage},
};

/// How long a worker may take to say who it is. Without a bound, a client that says nothing would
/// keep a task and a stream of the server for as long as its connection lasts: at the socket for ever.
pub(super) const WITHIN: Duration = Duration::from_secs(15);

/// The hello that a session begins with, if it comes within `within`.
pub(super) async fn first_of(
    incoming: &mut (impl Stream<Item = Received> + Unpin),
    within: Duration,
) -> Result<v1::Hello, CommandError> {
    let first = tokio::time::timeout(within, incoming.next()).await;
    match first.map_err(|_| Limit::RequestTimedOut { within })? {
        Some(Ok(WorkerMessage::Hello(hello))) => Ok(hello),
        first => {
            let what = "a session begins with a hello".to_owned();
            let error = first.and_then(Result::err).flatten();
            Err(error.unwrap_or(CommandError::MessageInvalid { what }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_without_a_hello_ends() {
        let hello = v1::Hello { worker: "w".to_owned(), ..Default::default() };
        let mut said = tokio_stream::iter([Ok(WorkerMessage::Hello(hello.clone()))]);
        assert_eq!(first_of(&mut said, WITHIN).await.unwrap(), hello);

        let mut silent = tokio_stream::pending();
        let late = first_of(&mut silent, Duration::ZERO).await.unwrap_err();
        assert_eq!(late.code().as_str(), "REQUEST_TIMED_OUT");
        let mut other = tokio_stream::iter([Ok(WorkerMessage::Heartbeat)]);
        let refused = first_of(&mut other, WITHIN).await.unwrap_err();
        assert_eq!(refused.code().as_str(), "MESSAGE_INVALID");
    }
}
