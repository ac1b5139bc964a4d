//! How many files this process may have open, and how many jobs at once that allows.
//!
//! Systems begin a process with a low soft limit (often 1,024) under a high hard one. A worker of
//! many slots needs more, its scripts do not: they get the limit that this process was given.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files of one job: three pipes and the file its output waits in while it runs, and one more
/// for what is opened for a moment when it begins or ends.
const FILES_PER_JOB: u64 = 5;
/// Open files of the process itself: store, blobs being written, sockets of clients and sessions.
const FILES_OWN: u64 = 128;
/// Highest soft limit that is asked for. Some containers have a hard limit of a billion, which the
/// system itself refuses (`fs.nr_open`), and nothing here needs as much.
const SOFT_LIMIT_MAX: u64 = 1024 * 1024;

/// The soft limit that this process was started with.
static STARTED_WITH: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit of this process to the hard one. To be called once, at the start: what is
/// started before has the old limit.
pub fn raise_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let wanted = hard.min(SOFT_LIMIT_MAX);
    // A limit that cannot be raised is not a reason to stop: fewer jobs run at once then.
    if wanted > soft && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        STARTED_WITH.get_or_init(|| soft);
    }
}

/// The limit that scripts begin with. `None`: that of this process.
pub(crate) fn limit_of_scripts() -> Option<u64> {
    STARTED_WITH.get().copied()
}

/// Why fewer jobs run at once than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FewerJobs {
    /// Most jobs at once.
    pub jobs: u32,
    /// How many files this process may have open.
    pub files: u64,
}

/// Whether this process may open the files of `asked` jobs at once.
pub fn check_jobs(asked: u32) -> Result<(), FewerJobs> {
    // A system that does not say is taken at its word: it has no limit.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(Ok(()), |(files, _)| check_jobs_within(asked, files))
}

fn check_jobs_within(asked: u32, files: u64) -> Result<(), FewerJobs> {
    // One job always runs: a limit that is too low even for that fails it with the system's words.
    let jobs = (files.saturating_sub(FILES_OWN) / FILES_PER_JOB).max(1);
    match u32::try_from(jobs) {
        Ok(jobs) if jobs < asked => Err(FewerJobs { jobs, files }),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_jobs_run_at_once_than_can_open_their_files() {
        assert_eq!(check_jobs_within(179, 1_024), Ok(()));
        assert_eq!(check_jobs_within(500, 1_024), Err(FewerJobs { jobs: 179, files: 1_024 }));
        assert_eq!(check_jobs_within(1, 0), Ok(()));
        assert_eq!(check_jobs_within(2, 0), Err(FewerJobs { jobs: 1, files: 0 }));
        assert_eq!(check_jobs_within(u32::MAX, u64::MAX), Ok(()));
    }
}
