//! What an attempt directory's journal says: which attempt lies there, how far it got, how it ended. Lines are
//! appended, by the worker and by its keeper; only a line with its newline counts.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use towpath_engine::ids::{Attempt, JobName, RunId};

/// A journal longer than this, in bytes, is begun anew with the next attempt.
pub(crate) const JOURNAL_BYTES_MAX: u64 = 64 * 1024;

/// What must be known to go on with an attempt after the worker was killed. No secret's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JournalEntry {
    pub(crate) run: RunId,
    pub(crate) job: JobName,
    pub(crate) attempt: Attempt,
    pub(crate) fence: u64,
    /// The script's working folder.
    pub(crate) folder: PathBuf,
    /// The file that the script may write its outputs to.
    pub(crate) output: PathBuf,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) grace_ms: u64,
    pub(crate) artifacts: Vec<String>,
    /// Names of secrets.
    pub(crate) secrets: Vec<String>,
    /// W3C trace context of the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<String>,
    /// The name of the keeper's socket.
    pub(crate) keeper: String,
    /// When it began, by the clock of this boot that never goes back.
    pub(crate) began_ms: u64,
    /// When it began, by the clock that files are stamped with.
    pub(crate) began_unix_ms: u64,
}

/// Why the worker ended an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    Cancelled,
    TimedOut,
}

/// The newest attempt of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LatestAttempt {
    pub(crate) kept: JournalEntry,
    /// Its keeper was about to start the script.
    pub(crate) started: bool,
    /// The script's first process, which is also the number of its process group.
    pub(crate) pid: Option<i32>,
    /// When that process was started, in clock ticks of this boot. The number may be another
    /// process's by now; the number and the time together are not. `None`: nobody noted it.
    pub(crate) born: Option<u64>,
    /// What the script ended with.
    pub(crate) exit: Option<i32>,
    pub(crate) stop: Option<StopReason>,
    /// The server knows how it ended.
    pub(crate) forgotten: bool,
}

impl LatestAttempt {
    /// The newest attempt in the journal of the attempt directory at `folder`, if one was begun there.
    pub(crate) fn newest(folder: &Path) -> io::Result<Option<Self>> {
        let text = fs::read(path(folder))?;
        Ok(parse(&String::from_utf8_lossy(&text)))
    }

    /// How long the attempt took, if it ended with nobody watching: from its begin to the last
    /// line of the journal, by the clock that files are stamped with.
    pub(crate) fn ran_unwatched_ms(&self, folder: &Path) -> u64 {
        let written = fs::metadata(path(folder)).and_then(|metadata| metadata.modified());
        let written = written.map_or(0, unix_ms);
        written.saturating_sub(self.kept.began_unix_ms)
    }
}

/// The journal of the attempt directory at `folder`.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join("journal")
}

/// Begins an attempt.
pub(crate) fn begin(folder: &Path, kept: &JournalEntry) -> io::Result<()> {
    let mut line = b"attempt ".to_vec();
    serde_json::to_writer(&mut line, kept)?;
    line.push(b'\n');
    // Appended, never rewritten: the keeper writes to the same file, and two writers that append
    // cannot overwrite each other.
    let mut file = OpenOptions::new().append(true).create(true).open(path(folder))?;
    // Only here, while no keeper writes to it: folders are used again for thousands of attempts.
    if file.metadata()?.len() > JOURNAL_BYTES_MAX {
        file.set_len(0)?;
    }
    // One write of one whole line. Nothing is synced: after a power cut no script runs any more, and
    // the server loses the attempt when its worker comes back without it.
    file.write_all(&line)
}

/// The line that says which process a script began as.
pub(crate) fn pid_line(pid: i32, born: Option<u64>) -> String {
    match born {
        Some(born) => format!("pid {pid} {born}\n"),
        None => format!("pid {pid}\n"),
    }
}

/// Notes that the worker is about to end the attempt.
pub(crate) fn stop(folder: &Path, stop: StopReason) -> io::Result<()> {
    append(
        folder,
        match stop {
            StopReason::Cancelled => "stop cancelled\n",
            StopReason::TimedOut => "stop timed_out\n",
        },
    )
}

/// Notes that the attempt is over and done with.
pub(crate) fn forget(folder: &Path) -> io::Result<()> {
    append(folder, "forgotten\n")
}

fn append(folder: &Path, line: &str) -> io::Result<()> {
    OpenOptions::new().append(true).open(path(folder))?.write_all(line.as_bytes())
}

fn parse(text: &str) -> Option<LatestAttempt> {
    let mut page = None;
    for line in text.split_inclusive('\n') {
        // A line that somebody was killed over.
        let Some(line) = line.strip_suffix('\n') else { break };
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (word, &mut page) {
            ("attempt", _) => {
                let kept = serde_json::from_str(rest).ok();
                page = kept.map(|kept| LatestAttempt {
                    kept,
                    started: false,
                    pid: None,
                    born: None,
                    exit: None,
                    stop: None,
                    forgotten: false,
                });
            }
            ("start", Some(page)) => page.started = true,
            ("pid", Some(page)) => {
                // Keepers of before 0.2 noted the number alone.
                let (pid, born) = rest.split_once(' ').unwrap_or((rest, ""));
                (page.pid, page.born) = (pid.parse().ok(), born.parse().ok());
            }
            // A keeper reports 0 to 255; a job can write to the journal too.
            ("exit", Some(page)) => page.exit = rest.parse::<u8>().ok().map(i32::from),
            ("stop", Some(page)) if rest == "cancelled" => page.stop = Some(StopReason::Cancelled),
            ("stop", Some(page)) if rest == "timed_out" => page.stop = Some(StopReason::TimedOut),
            ("forgotten", Some(page)) => page.forgotten = true,
            _ => {}
        }
    }
    page
}

/// Milliseconds of the clock that never goes back and that all processes of this boot share.
pub(crate) fn boot_ms() -> u64 {
    let since = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `moment` as milliseconds since 1970.
pub(crate) fn unix_ms(moment: SystemTime) -> u64 {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(job: &str) -> JournalEntry {
        JournalEntry {
            run: "r1".into(),
            job: job.into(),
            attempt: Attempt::FIRST,
            fence: 1,
            folder: "/tmp".into(),
            output: "/tmp/o".into(),
            timeout_ms: Some(5),
            grace_ms: 10_000,
            artifacts: vec![],
            secrets: vec!["TOKEN".to_owned()],
            traceparent: None,
            keeper: "keeper-1".to_owned(),
            began_ms: 3,
            began_unix_ms: 4,
        }
    }

    #[test]
    fn the_newest_attempt_counts_with_what_followed_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        begin(at, &kept("old")).unwrap();
        append(at, "pid 7\nexit 1\n").unwrap();
        forget(at).unwrap();
        begin(at, &kept("a/b: c+ü\n")).unwrap();
        let page = LatestAttempt::newest(at).unwrap().unwrap();
        assert_eq!(page.kept, kept("a/b: c+ü\n"));
        assert_eq!((page.pid, page.exit, page.stop, page.forgotten), (None, None, None, false));

        append(at, &pid_line(8, Some(77))).unwrap();
        stop(at, StopReason::TimedOut).unwrap();
        append(at, "exit 143\n").unwrap();
        let page = LatestAttempt::newest(at).unwrap().unwrap();
        assert_eq!((page.pid, page.born, page.exit), (Some(8), Some(77), Some(143)));
        assert_eq!((page.stop, page.forgotten), (Some(StopReason::TimedOut), false));
    }

    #[test]
    fn a_half_written_line_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        begin(folder.path(), &kept("a")).unwrap();
        append(folder.path(), "pid 8\nexit 1").unwrap();
        let page = LatestAttempt::newest(folder.path()).unwrap().unwrap();
        assert_eq!((page.pid, page.born, page.exit), (Some(8), None, None));

        fs::write(path(folder.path()), "attempt {\"run\":").unwrap();
        assert_eq!(LatestAttempt::newest(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_long_journal_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..1_000 {
            begin(folder.path(), &kept("a")).unwrap();
        }
        let size = fs::metadata(path(folder.path())).unwrap().len();
        assert!(size <= JOURNAL_BYTES_MAX + 1_000, "{size}");
    }
}
