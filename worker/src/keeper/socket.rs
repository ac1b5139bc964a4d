//! The worker's end of the socket to a keeper: requests that do not wait, its greeting, its end.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    os::unix::net::UnixStream as StdStream,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;

use super::{HELLO, Request, request::FRAME_BYTES_MAX};

/// Bytes of scripts that may wait for a keeper that reads nothing. Requests to end one are taken
/// beyond it: there are three of some hundred bytes for each attempt at most.
const WAITING_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Bytes that the queue keeps reserved while nothing waits.
const RESERVED_BYTES_MAX: usize = 64 * 1024;
/// How long a link that is closed may take to send what waits.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// A connection to a keeper.
///
/// A keeper that does not run at the moment reads nothing, for seconds or for ever. To wait for it
/// would hold up a thread that serves the other attempts, so what its socket does not take waits
/// here.
#[derive(Debug)]
pub(super) struct KeeperSocket {
    stream: UnixStream,
    waiting: Mutex<VecDeque<u8>>,
    /// Something waits.
    more: Notify,
    /// Nobody sends any more.
    closed: CancellationToken,
    /// The keeper is gone, or has another worker.
    pub(super) gone: CancellationToken,
}

impl KeeperSocket {
    /// Within a runtime.
    pub(super) fn new(stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            waiting: Mutex::default(),
            more: Notify::new(),
            closed: CancellationToken::new(),
            gone: CancellationToken::new(),
        })
    }

    /// Sends `request`, or keeps it to be sent. An error says that the keeper is gone, that it has
    /// not read for so long that no script more can wait, or that no system takes so much.
    pub(super) fn send(&self, request: &Request) -> io::Result<()> {
        let frame = request.frame().ok_or(ErrorKind::ArgumentListTooLong)?;
        if self.gone.is_cancelled() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut waiting = self.waiting();
        let full = waiting.len() + frame.len() > WAITING_BYTES_MAX;
        if full && matches!(request, Request::Start(_)) {
            return Err(ErrorKind::QuotaExceeded.into());
        }
        waiting.extend(frame);
        self.write(&mut waiting)?;
        if !waiting.is_empty() {
            self.more.notify_one();
        }
        Ok(())
    }

    /// Lets what waits be sent, and closes the connection.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// Sends what waits, and tells `greet` of the keeper's greeting, until one of the two ends.
    pub(super) async fn serve(&self, greet: watch::Sender<bool>) {
        tokio::select! {
            () = self.read(&greet) => {}
            () = self.send_waiting() => {}
            () = self.closed.cancelled() => {
                let rest = async {
                    while !self.is_idle() && self.stream.writable().await.is_ok() {
                        if self.write(&mut self.waiting()).is_err() {
                            return;
                        }
                    }
                };
                drop(tokio::time::timeout(CLOSE_MAX, rest).await);
            }
        }
        self.gone.cancel();
    }

    /// It greets once and says nothing more, so the next that can be read is the end.
    async fn read(&self, greet: &watch::Sender<bool>) {
        while self.stream.readable().await.is_ok() {
            let mut byte = [0];
            match self.stream.try_read(&mut byte) {
                Ok(1) if byte == [HELLO] => drop(greet.send(true)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    async fn send_waiting(&self) {
        loop {
            while self.is_idle() {
                self.more.notified().await;
            }
            if self.stream.writable().await.is_err() || self.write(&mut self.waiting()).is_err() {
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting().is_empty()
    }

    /// Writes what the socket takes now.
    fn write(&self, waiting: &mut VecDeque<u8>) -> io::Result<()> {
        while !waiting.is_empty() {
            match self.stream.try_write(waiting.as_slices().0) {
                Ok(written) => drop(waiting.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    // Half a request may have been sent: nothing after it would be understood.
                    self.gone.cancel();
                    return Err(error);
                }
            }
        }
        if waiting.capacity() > RESERVED_BYTES_MAX {
            // One long script must not hold megabytes for as long as the worker runs.
            *waiting = VecDeque::new();
        }
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
