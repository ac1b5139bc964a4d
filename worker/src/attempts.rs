//! Where attempts lie on disk, so that they outlive the worker: a folder of numbered attempt directories.
//!
//! An attempt directory holds one attempt at a time: two pipes for its output, one for its end, and a journal.
//! AttemptDirs are used again, because making and removing files costs more than running a small
//! script; but only when nobody holds an end of their pipes any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, ErrorKind, Read as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use towpath_engine::ids::{Attempt, Digest, JobName, RunId};

use crate::{
    environment::Environment,
    journal::{self, JournalEntry, LatestAttempt},
    keeper::{self, Keeper},
    output_pipe::{self, OutputPipe},
    own_disk::OwnDisk,
};

/// Longest name of a file made from a run and a job, in bytes; file systems allow 255.
const STEM_BYTES_MAX: usize = 200;
/// How often a folder that is in use is tried again.
const LOCK_TRIES_MAX: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(20);
/// How often a keeper is tried again that cannot be connected to, and is not gone.
const REACH_PAUSE: Duration = Duration::from_secs(1);

/// The attempts folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AttemptsError {
    /// Another worker uses it.
    #[error("the folder `{folder}` is in use by another worker")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The system said no.
    #[error("the folder `{folder}` cannot be used")]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How far an attempt was when it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundState {
    /// Its script was never started.
    NeverStarted,
    /// Its script was started, and its end has not been written down: it runs, or it is lost.
    Begun,
    /// Its script has ended, or was being ended.
    Ended,
}

/// An attempt of an earlier worker process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundAttempt {
    /// Its run.
    pub run: RunId,
    /// Its job.
    pub job: JobName,
    /// Which try it is.
    pub attempt: Attempt,
    /// The fence it was leased with.
    pub fence: u64,
    /// How far it was.
    pub state: FoundState,
    /// W3C trace context of the attempt.
    pub traceparent: Option<String>,
    /// When it began, in milliseconds since 1970 by the clock of this machine.
    pub began_unix_ms: u64,
}

type AttemptKey = (RunId, JobName, Attempt);

/// The folder of one worker's attempts. One process has it open at a time.
#[derive(Debug)]
pub struct AttemptsDir {
    folder: PathBuf,
    environment: Environment,
    disk: Arc<OwnDisk>,
    attempt_dirs: Mutex<AttemptDirs>,
    /// Who starts scripts for this worker. Started with the first one.
    keeper: Mutex<Option<Arc<Keeper>>>,
    /// The keepers of earlier workers, while an attempt of theirs is watched. Each has one worker.
    found_keepers: tokio::sync::Mutex<BTreeMap<String, Weak<Keeper>>>,
    /// Held locked for as long as this lives.
    _lock: File,
}

#[derive(Debug, Default)]
struct AttemptDirs {
    free: Vec<PathBuf>,
    taken: BTreeMap<AttemptKey, PathBuf>,
    last: u64,
}

/// The reading ends of an attempt directory's pipes.
#[derive(Debug)]
pub(crate) struct OutputPipes {
    pub(crate) out: OutputPipe,
    pub(crate) err: OutputPipe,
    pub(crate) end: OutputPipe,
}

/// An attempt directory and its pipes, ready for an attempt.
#[derive(Debug)]
pub(crate) struct AttemptDir {
    pub(crate) folder: PathBuf,
    pub(crate) pipes: OutputPipes,
}

impl AttemptsDir {
    /// As [`AttemptsDir::open`], but waits up to a second for another worker that is just ending.
    ///
    /// A worker that was just killed may leave a child behind which has not become its keeper yet
    /// and holds the lock for that long.
    pub async fn open_when_free(
        folder: &Path,
        environment: &Environment,
    ) -> Result<Self, AttemptsError> {
        for _ in 1..LOCK_TRIES_MAX {
            match Self::open(folder, environment.clone()) {
                // Not a sleep of the thread: it serves whatever else runs in this process.
                Err(AttemptsError::InUse { .. }) => tokio::time::sleep(LOCK_WAIT).await,
                opened => return opened,
            }
        }
        Self::open(folder, environment.clone())
    }

    /// Opens the folder, and makes it if there is none. Scripts will see `environment`'s harmless
    /// part and the secrets in it that they are given.
    pub fn open(folder: &Path, environment: Environment) -> Result<Self, AttemptsError> {
        let unusable = |source| AttemptsError::Unusable { folder: folder.to_owned(), source };
        make_private(folder).map_err(unusable)?;
        let folder = folder.canonicalize().map_err(unusable)?;
        let unusable = |source| AttemptsError::Unusable { folder: folder.clone(), source };
        // The lock goes with the process, however that ends. A file that names a process would
        // outlive it, and the number might be a stranger's.
        let lock = File::create(folder.join("lock")).map_err(unusable)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => AttemptsError::InUse { folder: folder.clone() },
            TryLockError::Error(source) => unusable(source),
        })?;
        make_private(&folder.join("outputs")).map_err(unusable)?;
        make_private(&folder.join("spool")).map_err(unusable)?;
        make_private(&folder.join("work")).map_err(unusable)?;
        let attempt_dirs = AttemptDirs::found_in(&folder).map_err(unusable)?;
        let disk = Arc::new(OwnDisk::of(&folder));
        Ok(Self {
            folder,
            environment,
            disk,
            attempt_dirs: Mutex::new(attempt_dirs),
            keeper: Mutex::default(),
            found_keepers: tokio::sync::Mutex::default(),
            _lock: lock,
        })
    }

    /// Who starts scripts for this worker; one that was killed is replaced. Within a runtime.
    pub(crate) fn keeper(&self) -> io::Result<Arc<Keeper>> {
        let mut own = self.own_keeper();
        if let Some(keeper) = own.as_ref().filter(|keeper| !keeper.gone().is_cancelled()) {
            return Ok(Arc::clone(keeper));
        }
        let keeper = Keeper::start(&self.folder)?;
        *own = Some(Arc::clone(&keeper));
        Ok(keeper)
    }

    /// Whether a worker that paused, because its disk took no bytes or it could not start a keeper,
    /// can run jobs again. Blocks; within a runtime.
    pub(crate) fn can_run_again(&self) -> bool {
        // Before the disk, which forgets by then why the worker paused.
        self.keeper().is_ok() && self.disk.look_again()
    }

    /// The keeper of the socket `name`, which may not have answered yet. `None`: it is gone.
    pub(crate) async fn reach_keeper(&self, name: &str) -> Option<Arc<Keeper>> {
        if let Some(own) = self.own_keeper().as_ref().filter(|own| own.name() == name) {
            return Some(Arc::clone(own));
        }
        loop {
            let mut found = self.found_keepers.lock().await;
            let known = found.get(name).and_then(Weak::upgrade);
            if let Some(keeper) = known.filter(|keeper| !keeper.gone().is_cancelled()) {
                return Some(keeper);
            }
            match Keeper::find(&self.folder, name) {
                Ok(keeper) => {
                    let keeper = keeper?;
                    found.insert(name.to_owned(), Arc::downgrade(&keeper));
                    return Some(keeper);
                }
                Err(error) => tracing::warn!(%error, keeper = name, "keeper cannot be reached"),
            }
            drop(found);
            // Not taken for gone: that would judge its attempts, which it may yet start.
            tokio::time::sleep(REACH_PAUSE).await;
        }
    }

    fn own_keeper(&self) -> MutexGuard<'_, Option<Arc<Keeper>>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another worker uses `folder` now. `false` also if there is no such folder, or it
    /// cannot be read: opening it says why.
    pub fn is_in_use(folder: &Path) -> bool {
        // Opened and not created: asking must leave nothing behind. The lock goes with the handle.
        let lock = File::open(folder.join("lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The attempts that earlier processes left behind. Ask before executing any of your own:
    /// those would be listed too.
    pub fn found(&self) -> Vec<FoundAttempt> {
        let folders: Vec<PathBuf> = self.attempt_dirs().taken.values().cloned().collect();
        let pages =
            folders.iter().filter_map(|folder| LatestAttempt::newest(folder).ok().flatten());
        pages
            .map(|page| FoundAttempt {
                state: match page {
                    LatestAttempt { exit: Some(_), .. } | LatestAttempt { stop: Some(_), .. } => {
                        FoundState::Ended
                    }
                    LatestAttempt { started: true, .. } => FoundState::Begun,
                    // Its keeper may be about to start it; whoever adopts the attempt asks it.
                    LatestAttempt { .. } => FoundState::NeverStarted,
                },
                run: page.kept.run,
                job: page.kept.job,
                attempt: page.kept.attempt,
                fence: page.kept.fence,
                traceparent: page.kept.traceparent,
                began_unix_ms: page.kept.began_unix_ms,
            })
            .collect()
    }

    /// Lets go of an attempt, once the server knows how it ended. Does nothing if there is none.
    pub fn forget(&self, run: &RunId, job: &JobName, attempt: Attempt) {
        let key = (run.clone(), job.clone(), attempt);
        let folder = self.attempt_dirs().taken.remove(&key);
        let Some(folder) = folder else { return };
        for file in [self.output(run, job, attempt), self.spool(run, job, attempt)] {
            let _ = fs::remove_file(file);
        }
        // Before the folder is free: a worker that was killed in between would take up, and report,
        // an attempt that is recorded.
        let written = journal::forget(&folder);
        match written {
            Ok(()) => self.attempt_dirs().free.push(folder),
            // What cannot be noted in the journal is told by its absence.
            Err(_) => drop(fs::remove_dir_all(folder)),
        }
    }

    /// The disk that all of this lies on.
    pub(crate) fn disk(&self) -> &Arc<OwnDisk> {
        &self.disk
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The file that `$TOW_OUTPUT` names.
    pub(crate) fn output(&self, run: &RunId, job: &JobName, attempt: Attempt) -> PathBuf {
        self.folder.join("outputs").join(format!("{}.{attempt}", stem(run, job)))
    }

    /// The file where what an attempt printed waits for the server.
    pub(crate) fn spool(&self, run: &RunId, job: &JobName, attempt: Attempt) -> PathBuf {
        self.folder.join("spool").join(format!("{}.{attempt}", stem(run, job)))
    }

    /// The folder that an attempt works in, if its run brings its files along.
    pub(crate) fn work(&self, run: &RunId, job: &JobName, attempt: Attempt) -> PathBuf {
        self.folder.join("work").join(format!("{}.{attempt}", stem(run, job)))
    }

    /// Takes the folder of an attempt away from where folders are removed.
    pub(crate) fn keep_work(&self, work: &Path) -> io::Result<()> {
        let kept = self.folder.join("kept");
        make_private(&kept)?;
        fs::rename(work, kept.join(work.file_name().unwrap_or_default()))
    }

    /// Where the files of runs wait for the next attempt.
    pub(crate) fn sources(&self) -> PathBuf {
        self.folder.join("sources")
    }

    /// An attempt directory for the attempt `kept`, with its journal begun. `AlreadyExists`: it has one.
    pub(crate) fn take(&self, kept: &JournalEntry) -> io::Result<AttemptDir> {
        let key = (kept.run.clone(), kept.job.clone(), kept.attempt);
        if self.attempt_dirs().taken.contains_key(&key) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let attempt_dir = self.clean_dir()?;
        // Written before the script starts: what a killed worker leaves running must be found again.
        journal::begin(&attempt_dir.folder, kept)?;
        self.attempt_dirs().taken.insert(key, attempt_dir.folder.clone());
        Ok(attempt_dir)
    }

    /// The attempt directory where the attempt lies.
    pub(crate) fn attempt_dir(
        &self,
        run: &RunId,
        job: &JobName,
        attempt: Attempt,
    ) -> Option<PathBuf> {
        self.attempt_dirs().taken.get(&(run.clone(), job.clone(), attempt)).cloned()
    }

    fn clean_dir(&self) -> io::Result<AttemptDir> {
        // Taken out, so that no two attempts look at the same folder while the lock is free.
        let free = std::mem::take(&mut self.attempt_dirs().free);
        let mut free = free.into_iter();
        let mut later = Vec::new();
        let mut clean = None;
        for folder in free.by_ref() {
            // The pipes are opened only once nothing holds the pipes any more. A pipe that has read
            // end-of-file, or that was open while the last writer left, takes the pipe for closed:
            // the next attempt would then be read only after its end, and a script that prints
            // more than the pipe holds would wait for ever.
            let state = DirState::of(&folder);
            match state.and_then(|state| Ok((state, OutputPipes::open(&folder)?))) {
                Ok((DirState::Clean, pipes)) => {
                    clean = Some(AttemptDir { folder, pipes });
                    break;
                }
                Ok((DirState::Closing, _)) => later.push(folder),
                // A process that left the group still holds a pipe, or the attempt directory is damaged.
                Ok((DirState::Held, _)) | Err(_) => drop(fs::remove_dir_all(folder)),
            }
        }
        self.attempt_dirs().free.extend(later.into_iter().chain(free));
        clean.map_or_else(|| self.new_dir(), Ok)
    }

    fn new_dir(&self) -> io::Result<AttemptDir> {
        let number = {
            let mut attempt_dirs = self.attempt_dirs();
            attempt_dirs.last += 1;
            attempt_dirs.last
        };
        let folder = self.folder.join(number.to_string());
        make_private(&folder)?;
        for pipe in ["out", "err", "end"] {
            make_pipe(&folder.join(pipe))?;
        }
        let pipes = OutputPipes::open(&folder)?;
        Ok(AttemptDir { folder, pipes })
    }

    fn attempt_dirs(&self) -> MutexGuard<'_, AttemptDirs> {
        self.attempt_dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an attempt directory can be used again.
enum DirState {
    Clean,
    /// The keeper has not quite released the last attempt.
    Closing,
    /// Somebody has kept the output open.
    Held,
}

impl DirState {
    /// The state of the attempt directory at `folder`.
    fn of(folder: &Path) -> io::Result<Self> {
        // `end` comes first: once the keeper has let go, what holds the output is an orphan process.
        let ended = is_closed(&folder.join("end"))?;
        let output_closed = is_closed(&folder.join("out"))? && is_closed(&folder.join("err"))?;
        Ok(match (ended, output_closed) {
            (true, true) => Self::Clean,
            (false, _) => Self::Closing,
            (true, false) => Self::Held,
        })
    }
}

/// Whether no process has the pipe at `path` open for writing. A pipe that still holds bytes is
/// not closed.
fn is_closed(path: &Path) -> io::Result<bool> {
    match output_pipe::open_pipe(path)?.read(&mut [0]) {
        Ok(read) => Ok(read == 0),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

impl OutputPipes {
    /// Opens the pipes of the attempt directory at `folder` for reading.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            out: OutputPipe::open(&folder.join("out"))?,
            err: OutputPipe::open(&folder.join("err"))?,
            end: OutputPipe::open(&folder.join("end"))?,
        })
    }
}

impl AttemptDirs {
    /// The attempts in `folder`. What belongs to none is removed.
    fn found_in(folder: &Path) -> io::Result<Self> {
        let mut attempt_dirs = Self::default();
        let (mut outputs, mut keepers, mut sockets) = (Vec::new(), BTreeSet::new(), Vec::new());
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.starts_with(keeper::PREFIX) {
                sockets.push(name.to_owned());
            }
            let Ok(number) = name.parse::<u64>() else { continue };
            attempt_dirs.last = attempt_dirs.last.max(number);
            // An attempt directory without a whole page was made, or begun, by a worker killed on the way.
            match LatestAttempt::newest(&path).ok().flatten() {
                Some(LatestAttempt { kept, forgotten: false, .. }) => {
                    outputs.push(kept.output);
                    keepers.insert(kept.keeper);
                    attempt_dirs.taken.insert((kept.run, kept.job, kept.attempt), path);
                }
                Some(_) | None => fs::remove_dir_all(&path)?,
            }
        }
        // A keeper removes its own when it ends; one that was killed cannot. One that still runs has
        // nothing that counts, and ends by itself.
        for socket in sockets.iter().filter(|socket| !keepers.contains(*socket)) {
            fs::remove_file(folder.join(socket))?;
        }
        let names: Vec<_> = outputs.iter().filter_map(|output| output.file_name()).collect();
        for kind in ["outputs", "spool", "work"] {
            for entry in fs::read_dir(folder.join(kind))? {
                let entry = entry?;
                if names.contains(&entry.file_name().as_os_str()) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(attempt_dirs)
    }
}

fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn make_pipe(path: &Path) -> io::Result<()> {
    match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A file name for a job of a run. No two have the same, also where case does not count.
fn stem(run: &RunId, job: &JobName) -> String {
    let stem = format!("{}.{}", escaped(run.as_str()), escaped(job.as_str()));
    if stem.len() <= STEM_BYTES_MAX {
        return stem;
    }
    // `%%` stands in no escaped name.
    format!("{}%%{}", &stem[..STEM_BYTES_MAX - 70], Digest::of(stem.as_bytes()))
}

fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(char::from(byte)),
            other => {
                escaped.push('%');
                escaped.push_str(&hex::encode([other]));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_become_different_safe_file_names() {
        let odd =
            ["a", "A", "a/b: c+ü", "a%2fb", "a/b", ".", "..", "", "a.b", "-", "a\nb", "a b", "%%"];
        let mut names: Vec<String> = odd.iter().map(|&name| name.to_owned()).collect();
        for last in ["x", "y", "X"] {
            names.push(format!("{}{last}", "ü".repeat(100)));
            names.push(format!("{}{last}", "n".repeat(300)));
        }
        let mut stems = BTreeSet::new();
        for name in &names {
            let stem = stem(&"run".into(), &name.as_str().into());
            assert!(stem.len() <= STEM_BYTES_MAX, "{stem}");
            let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_%.".contains(c);
            assert!(stem.chars().all(safe), "{stem}");
            assert!(stems.insert(stem), "{name:?}");
        }
        assert_ne!(stem(&"a".into(), &"b.c".into()), stem(&"a.b".into(), &"c".into()));
    }

    #[tokio::test]
    async fn a_folder_in_use_is_waited_for_and_blocks_no_thread() {
        let folder = tempfile::tempdir().unwrap();
        let first = AttemptsDir::open(folder.path(), Environment::default()).unwrap();
        let environment = Environment::default();

        // On one thread: the first is closed only if the second does not block it.
        let second = AttemptsDir::open_when_free(folder.path(), &environment);
        let (second, ()) = tokio::join!(second, async { drop(first) });

        second.unwrap();
    }

    #[test]
    fn a_folder_in_use_is_refused_and_free_again_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let first = AttemptsDir::open(folder.path(), Environment::default()).unwrap();
        let second = AttemptsDir::open(folder.path(), Environment::default());
        assert!(matches!(second, Err(AttemptsError::InUse { .. })));
        assert!(AttemptsDir::is_in_use(folder.path()));
        drop(first);
        assert!(!AttemptsDir::is_in_use(folder.path()));
        AttemptsDir::open(folder.path(), Environment::default()).unwrap();
    }

    #[test]
    fn asking_for_a_folder_does_not_make_it() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!AttemptsDir::is_in_use(folder.path()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_worker_left_half_made_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        drop(AttemptsDir::open(folder.path(), Environment::default()).unwrap());
        fs::create_dir(folder.path().join("7")).unwrap();
        fs::create_dir(folder.path().join("8")).unwrap();
        fs::write(folder.path().join("8/journal"), "attempt {\"ru").unwrap();
        fs::write(folder.path().join("outputs/stray.1"), "x=1").unwrap();
        fs::write(folder.path().join("spool/stray.1"), "1 o x\n").unwrap();
        fs::create_dir_all(folder.path().join("work/stray.1/deep")).unwrap();

        let attempts = AttemptsDir::open(folder.path(), Environment::default()).unwrap();
        assert_eq!(attempts.found(), []);
        assert!(!folder.path().join("7").exists() && !folder.path().join("8").exists());
        assert!(!folder.path().join("outputs/stray.1").exists());
        assert!(!folder.path().join("spool/stray.1").exists());
        assert!(!folder.path().join("work/stray.1").exists());
        assert_eq!(attempts.attempt_dirs().last, 8);
    }
}
