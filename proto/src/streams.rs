//! What streams carry, without the messages around it.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tonic::{Status, Streaming, codegen::tokio_stream::Stream};

use crate::v1::{
    FetchBlobResponse, FollowResponse, ReadArtifactResponse, ReadOutputResponse, Record,
};

/// The records of `LogService.Follow`, one by one. They come in groups.
#[derive(Debug)]
pub struct Records {
    stream: Streaming<FollowResponse>,
    /// Received and not handed out yet: what is left of one message.
    ready: VecDeque<Record>,
}

impl Records {
    /// The records of `stream`.
    pub fn new(stream: Streaming<FollowResponse>) -> Self {
        Self { stream, ready: VecDeque::new() }
    }
}

impl Stream for Records {
    type Item = Result<Record, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(record)));
            }
            match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(FollowResponse { records })) => self.ready.extend(records),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A message that carries the next bytes of something.
pub trait Piece {
    /// The message with these bytes.
    fn of(content: Bytes) -> Self;

    /// The bytes.
    fn content(self) -> Bytes;
}

macro_rules! pieces {
    ($($message:ident),*) => {
        $(impl Piece for $message {
            fn of(content: Bytes) -> Self {
                Self { content }
            }

            fn content(self) -> Bytes {
                self.content
            }
        })*
    };
}

pieces!(FetchBlobResponse, ReadArtifactResponse, ReadOutputResponse);
