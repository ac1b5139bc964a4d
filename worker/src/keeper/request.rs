//! What a worker asks of its keeper, and its form on their socket.
//!
//! ```text
//! frame    length of the rest (4 bytes, little endian), kind (1 byte), fields
//! text     length (4 bytes, little endian), bytes
//! list     number of entries (4 bytes, little endian), the texts
//! ```
//!
//! There are no answers: what a keeper has to say stands in the attempt's journal and in its pipe
//! `end`, where the next worker finds it too.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

/// Longest frame, in bytes. Linux takes at most 6 MiB of arguments and variables.
pub(crate) const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of a length, and of a number of entries.
const LENGTH_BYTES: usize = 4;

/// What a worker asks of its keeper. `attempt` is the directory of the attempt it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Start a script.
    Start(Start),
    /// Ask everything in the script's process group to end.
    AskToEnd { attempt: PathBuf },
    /// Make everything in the script's process group end.
    Kill { attempt: PathBuf },
    /// End whatever is left of the script, and keep nothing of it any more.
    Release { attempt: PathBuf },
}

/// A script to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The directory of its attempt.
    pub(crate) attempt: PathBuf,
    /// The program and its arguments.
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// All variables that it sees.
    pub(crate) variables: Vec<(OsString, OsString)>,
    /// Where it runs.
    pub(crate) folder: PathBuf,
}

impl Request {
    /// The request as a frame. `None`: it is longer than [`FRAME_BYTES_MAX`].
    pub(crate) fn frame(&self) -> Option<Vec<u8>> {
        let mut frame = Frame(vec![0; LENGTH_BYTES]);
        match self {
            Self::Start(Start { attempt, program, arguments, variables, folder }) => {
                frame.kind(b's');
                frame.text(attempt.as_os_str());
                frame.text(program);
                frame.count(arguments.len());
                arguments.iter().for_each(|argument| frame.text(argument));
                frame.count(variables.len());
                for (name, value) in variables {
                    frame.text(name);
                    frame.text(value);
                }
                frame.text(folder.as_os_str());
            }
            Self::AskToEnd { attempt } => frame.about(b'e', attempt),
            Self::Kill { attempt } => frame.about(b'k', attempt),
            Self::Release { attempt } => frame.about(b'r', attempt),
        }
        frame.finish()
    }

    /// The first request in `bytes`, and how many bytes it takes. `Ok(None)`: not all of it is
    /// there yet.
    pub(crate) fn first_of(bytes: &[u8]) -> Result<Option<(Self, usize)>, BadFrame> {
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        // Before waiting for the rest: a wrong length would let the buffer grow without bound.
        if length > FRAME_BYTES_MAX {
            return Err(BadFrame);
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let mut fields = Fields(body);
        let request = fields.request().ok_or(BadFrame)?;
        // Bytes that no field has mean another version of the format, and guessing at it could end
        // the wrong script.
        if fields.0.is_empty() { Ok(Some((request, LENGTH_BYTES + length))) } else { Err(BadFrame) }
    }
}

/// Bytes that are no request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadFrame;

struct Frame(Vec<u8>);

impl Frame {
    fn kind(&mut self, kind: u8) {
        self.0.push(kind);
    }

    fn about(&mut self, kind: u8, attempt: &std::path::Path) {
        self.kind(kind);
        self.text(attempt.as_os_str());
    }

    fn count(&mut self, count: usize) {
        // What does not fit makes the frame longer than it may be, and is refused as a whole.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&count.to_le_bytes());
    }

    fn text(&mut self, text: &OsStr) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        let length = self.0.len() - LENGTH_BYTES;
        if length > FRAME_BYTES_MAX {
            return None;
        }
        let length = u32::try_from(length).ok()?.to_le_bytes();
        self.0[..LENGTH_BYTES].copy_from_slice(&length);
        Some(self.0)
    }
}

/// What is left of a frame to be read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn request(&mut self) -> Option<Request> {
        let (kind, rest) = self.0.split_first()?;
        self.0 = rest;
        let attempt = PathBuf::from(self.text()?);
        Some(match kind {
            b's' => Request::Start(Start {
                attempt,
                program: self.text()?,
                arguments: self.list(Self::text)?,
                variables: self.list(|fields| Some((fields.text()?, fields.text()?)))?,
                folder: self.text()?.into(),
            }),
            b'e' => Request::AskToEnd { attempt },
            b'k' => Request::Kill { attempt },
            b'r' => Request::Release { attempt },
            _ => return None,
        })
    }

    fn count(&mut self) -> Option<usize> {
        let (count, rest) = self.0.split_first_chunk::<LENGTH_BYTES>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*count) as usize)
    }

    fn text(&mut self) -> Option<OsString> {
        let length = self.count()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(OsString::from_vec(text.to_vec()))
    }

    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        // Not reserved by the number that was sent: each entry is read, or the frame is refused.
        (0..self.count()?).map(|_| read(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Request {
        Request::Start(Start {
            attempt: "/a/1".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), OsString::from_vec(vec![0xff, b'\n', 0])],
            variables: vec![("A".into(), "".into()), ("ü".into(), "b=c".into())],
            folder: "/".into(),
        })
    }

    #[test]
    fn a_request_is_read_as_it_was_sent() {
        let attempt = PathBuf::from("/a/b c/7");
        for request in [
            start(),
            Request::AskToEnd { attempt: attempt.clone() },
            Request::Kill { attempt: attempt.clone() },
            Request::Release { attempt },
        ] {
            let mut bytes = request.frame().unwrap();
            let length = bytes.len();
            for end in 0..length {
                assert_eq!(Request::first_of(&bytes[..end]), Ok(None), "{end} bytes of it");
            }
            bytes.extend_from_slice(b"the next");
            assert_eq!(Request::first_of(&bytes), Ok(Some((request, length))));
        }
    }

    #[test]
    fn bytes_that_are_no_request_are_refused() {
        let whole = start().frame().unwrap();
        let mut longer = whole.clone();
        longer.push(0);
        let length = u32::try_from(longer.len() - LENGTH_BYTES).unwrap();
        longer[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        let mut unknown = whole.clone();
        unknown[LENGTH_BYTES] = b'?';
        let mut endless = whole;
        endless[LENGTH_BYTES + 1..2 * LENGTH_BYTES + 1].copy_from_slice(&[0xff; 4]);
        for bytes in [longer, unknown, endless, vec![0xff; 8], vec![0; 8]] {
            assert_eq!(Request::first_of(&bytes), Err(BadFrame), "{bytes:?}");
        }
    }

    #[test]
    fn what_no_system_takes_is_no_frame() {
        let Request::Start(mut long) = start() else { panic!() };
        long.arguments = vec!["x".repeat(FRAME_BYTES_MAX).into()];
        assert_eq!(Request::Start(long).frame(), None);
    }
}
