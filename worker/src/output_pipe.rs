//! The reading end of a named pipe, waited for without a thread.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::fcntl::OFlag;
use tokio::net::unix::pipe;

/// Most bytes of one read: what a pipe holds by default on Linux.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a read before any was full. Most scripts print less, and to fill three large buffers
/// with zeros for each of them costs as much as starting a thread.
const READ_BYTES_FIRST: usize = 4 * 1024;

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PipeRead {
    /// So many bytes: see [`OutputPipe::bytes`].
    Bytes(usize),
    /// Nothing now; a process may still write.
    Nothing,
    /// Nothing, and no process can write any more.
    Closed,
}

/// Opens the reading end of the pipe at `path`. Neither this nor a read of it waits.
pub(crate) fn open_pipe(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)
}

/// A pipe being read.
#[derive(Debug)]
pub(crate) struct OutputPipe {
    pipe: pipe::Receiver,
    buffer: Vec<u8>,
    /// The latest read filled the buffer: there is probably more.
    was_full: bool,
    closed: bool,
}

impl OutputPipe {
    /// Opens the pipe at `path`, whether or not a process writes to it.
    ///
    /// A pipe that a process is about to close for the last time must not be opened for the next
    /// writer: the runtime never takes back that it saw the end of a pipe.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let pipe = pipe::Receiver::from_file(open_pipe(path)?)?;
        Ok(Self { pipe, buffer: Vec::new(), was_full: false, closed: false })
    }

    /// Reads what is there, without waiting.
    /// The only way to notice that no process has a pipe open for writing since before it was
    /// opened here: the system tells that to a read, but wakes no one for it.
    pub(crate) fn take_now(&mut self) -> PipeRead {
        self.make_buffer();
        let read = nix::unistd::read(&self.pipe, &mut self.buffer);
        self.took(read.map_err(io::Error::from))
    }

    /// Waits until there is something to read, and reads it. Never `Nothing`. May be dropped
    /// while it waits without losing a byte.
    pub(crate) async fn take(&mut self) -> PipeRead {
        self.make_buffer();
        loop {
            let read = match self.pipe.readable().await {
                Ok(()) => self.pipe.try_read(&mut self.buffer),
                Err(error) => Err(error),
            };
            let took = self.took(read);
            if took != PipeRead::Nothing {
                return took;
            }
        }
    }

    fn make_buffer(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; READ_BYTES_FIRST];
        } else if self.was_full && self.buffer.len() < READ_BYTES_MAX {
            self.buffer = vec![0; READ_BYTES_MAX];
        }
    }

    fn took(&mut self, read: io::Result<usize>) -> PipeRead {
        let took = match read {
            Ok(0) => PipeRead::Closed,
            Ok(bytes) => PipeRead::Bytes(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => PipeRead::Nothing,
            // A pipe that cannot be read is as good as closed.
            Err(_) => PipeRead::Closed,
        };
        self.closed = took == PipeRead::Closed;
        self.was_full = took == PipeRead::Bytes(self.buffer.len());
        took
    }

    /// The first `count` bytes of the latest read.
    pub(crate) fn bytes(&self, count: usize) -> &[u8] {
        &self.buffer[..count]
    }

    /// Whether the latest read found the pipe closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}
