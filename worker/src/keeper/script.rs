//! One script of a keeper: started, waited for, and kept until a worker has all that it left.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use super::{
    request::Start,
    starter::{SlowStart, Starter},
};
use crate::{
    journal,
    process_search::{is_group_empty, start_time},
};

/// A shell reports a command that a signal of number `n` ended as this plus `n`; so does a journal.
const SIGNAL_OFFSET: i32 = 128;
/// Standard streams of a script: input, output and errors.
const STREAMS: usize = 3;
/// How long killed processes may take to be gone.
const DYING_MAX: Duration = Duration::from_secs(2);
/// The variable that tells whose a process is.
const MARK: &str = "TOW_OUTPUT";

/// What all scripts of a keeper share.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// What a script reads.
    nothing: File,
    /// The soft limit of open files that scripts begin with. `None`: that of this process.
    files: Option<u64>,
    /// Keeps low descriptor numbers free for the standard streams of the next script.
    ///
    /// `posix_spawn` refuses a number that is not below the soft limit (`EBADF`), and a script is
    /// started under [`Self::files`]: with many scripts running, new numbers are above it.
    reserved: Vec<File>,
    starter: Starter,
}

impl Surroundings {
    pub(super) fn new(files: Option<u64>) -> io::Result<Self> {
        let nothing = File::open("/dev/null")?;
        let starter = Starter::default();
        let mut new = Self { nothing, files, reserved: Vec::new(), starter };
        new.reserve();
        Ok(new)
    }

    /// Occupies the lowest free numbers again, after a script was started.
    fn reserve(&mut self) {
        // Without a free descriptor the next start fails as well, and is tried again later.
        self.reserved = (0..STREAMS).map_while(|_| self.nothing.try_clone().ok()).collect();
    }
}

/// How far a script is.
#[derive(Debug)]
enum State {
    /// It could not be started; its worker was told why.
    Unstarted,
    /// It is being started, which takes long.
    Starting(SlowStart),
    Running,
    /// It has ended, and is not waited for yet: until then its number is its group's and nobody
    /// else's, so a signal to the group cannot reach a stranger.
    Ended,
    /// It was waited for. What is left of its group was killed, and may take until then to go.
    Going(Instant),
}

/// A script that is kept.
#[derive(Debug)]
pub(super) struct KeptScript {
    state: State,
    /// The script's first process, whose number is also that of its group. 0: there is none.
    leader: Pid,
    /// Names its attempt in the environment of all that it starts.
    mark: OsString,
    journal: Option<File>,
    /// Where its worker reads how it ended. Closed when nothing of it is left.
    end: File,
    /// Reading ends of its output: what nobody has read yet is lost when the last one is closed.
    unread: Vec<File>,
    released: bool,
    /// What it is to be sent as soon as it is started.
    pending: Option<Signal>,
}

impl KeptScript {
    /// Starts what `start` asks for. An error says that its worker cannot be told anything: try
    /// again later.
    ///
    /// `leaders` are the first processes of the other scripts.
    pub(super) fn start(
        start: &Start,
        surroundings: &mut Surroundings,
        leaders: impl Fn() -> Vec<i32>,
    ) -> io::Result<Self> {
        let end = open_nonblocking(&start.attempt, "end", true)?;
        surroundings.starter.prepare()?;
        let mark = start.variables.iter().find(|(name, _)| name == MARK);
        let mut script = Self {
            state: State::Unstarted,
            leader: Pid::from_raw(0),
            mark: mark.map(|(_, value)| value.clone()).unwrap_or_default(),
            journal: None,
            end,
            unread: Vec::new(),
            released: false,
            pending: None,
        };
        // The next descriptors that are opened are those of the script, and get these numbers.
        surroundings.reserved.clear();
        let command = script.command(start, surroundings);
        match command {
            Ok(command) => {
                let files = surroundings.files;
                let starter = &mut surroundings.starter;
                match with_limit(files, || starter.start(command, leaders)) {
                    Ok(started) => script.began(started),
                    Err(slow) => script.state = State::Starting(slow),
                }
            }
            Err(error) => script.say_unstarted("unwritable", &error),
        }
        surroundings.reserve();
        Ok(script)
    }

    /// The command that starts it. An error: the attempt's own files cannot be used.
    fn command(&mut self, start: &Start, surroundings: &Surroundings) -> io::Result<Command> {
        let attempt = &start.attempt;
        // First of all: they need the reserved numbers.
        let nothing = surroundings.nothing.try_clone()?;
        // Open for reading and writing: a script neither waits for a reader nor dies for want of
        // one, not even when worker and keeper were killed.
        let (out, err) = (open(attempt, "out")?, open(attempt, "err")?);
        let unread = ["out", "err"].map(|pipe| open_nonblocking(attempt, pipe, false)).into_iter();
        self.unread = unread.collect::<io::Result<_>>()?;
        // Not waited for: it is a file, unless a job of this user put something else in its place.
        let nonblocking = OFlag::O_NONBLOCK.bits();
        let mut options = OpenOptions::new();
        let options = options.append(true).custom_flags(nonblocking);
        let mut journal = options.open(journal::path(attempt))?;
        // Before it starts. A worker that finds neither this nor a number may say that the script
        // never started, and the job is run again.
        journal.write_all(b"start\n")?;
        self.journal = Some(journal);
        let mut command = Command::new(&start.program);
        command
            .args(&start.arguments)
            .env_clear()
            .envs(start.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(&start.folder)
            .stdin(Stdio::from(nothing))
            .stdout(Stdio::from(out))
            .stderr(Stdio::from(err))
            // A group of its own: a signal to it must reach neither its keeper nor other scripts.
            .process_group(0);
        Ok(command)
    }

    /// Takes in what came of its start.
    fn began(&mut self, started: io::Result<Child>) {
        let leader = started.and_then(|child| {
            i32::try_from(child.id()).map_err(|_| io::Error::from(Errno::ERANGE))
        });
        let leader = match leader {
            Ok(leader) => leader,
            Err(error) => {
                self.state = State::Unstarted;
                self.unread.clear();
                return self.say_unstarted("unstarted", &error);
            }
        };
        self.leader = Pid::from_raw(leader);
        self.state = State::Running;
        // Its number is its own until it is waited for, so this is its own time.
        let born = start_time(self.leader);
        let line = journal::pid_line(leader, born);
        let noted = self.journal.as_mut().map_or(Ok(()), |it| it.write_all(line.as_bytes()));
        if noted.is_err() {
            // Nobody would find it after a crash of its worker and its keeper.
            self.signal(Signal::SIGKILL);
        }
        if let Some(signal) = self.pending.take() {
            self.signal(signal);
        }
    }

    fn say_unstarted(&mut self, word: &str, error: &io::Error) {
        self.say(&format!("{word} {}", error.raw_os_error().unwrap_or_default()));
    }

    /// The number of its first process, as long as that is its own.
    pub(super) fn leader(&self) -> Option<Pid> {
        match self.state {
            State::Running | State::Ended => Some(self.leader),
            State::Unstarted | State::Starting(_) | State::Going(_) => None,
        }
    }

    /// The children of this process that are its own and wait to be noticed here: nobody else may
    /// wait for them.
    pub(super) fn children(&self) -> Vec<i32> {
        match &self.state {
            State::Starting(slow) => slow.children(),
            State::Unstarted | State::Running | State::Ended | State::Going(_) => {
                self.leader().map(Pid::as_raw).into_iter().collect()
            }
        }
    }

    /// The value of `TOW_OUTPUT` of all that it starts.
    pub(super) fn mark(&self) -> &OsStr {
        &self.mark
    }

    /// Whether a worker may still ask for something of it.
    pub(super) fn is_wanted(&self) -> bool {
        match self.state {
            State::Starting(_) | State::Running | State::Ended => true,
            State::Unstarted | State::Going(_) => false,
        }
    }

    /// Whether it has ended and is still kept.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether it is being started, so that its result has to be looked up.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting(_))
    }

    /// Sends `signal` to all its processes that are still in its group.
    pub(super) fn signal(&mut self, signal: Signal) {
        if let State::Starting(slow) = &self.state {
            // If it is started all the same, it is not to do anything any more.
            if self.pending != Some(Signal::SIGKILL) {
                self.pending = Some(signal);
            }
            if signal == Signal::SIGKILL {
                slow.kill();
            }
        }
        if self.leader().is_some() {
            // Fails only if no member is left, which is what was wanted.
            let _ = killpg(self.leader, signal);
        }
    }

    /// Looks whether it has ended, and says so where its worker looks. Returns whether it has just
    /// ended.
    pub(super) fn look(&mut self) -> bool {
        if let State::Starting(slow) = &self.state
            && let Some(started) = slow.poll()
        {
            self.began(started);
        }
        if !matches!(self.state, State::Running) {
            return false;
        }
        // Not waited for yet: see `State::Ended`.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let code = match waitid(Id::Pid(self.leader), flags) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => SIGNAL_OFFSET + signal as i32,
            Ok(_) | Err(_) => return false,
        };
        self.state = State::Ended;
        // The journal first: whoever reads the pipe may act on it, and the journal must know by then.
        if let Some(journal) = &mut self.journal {
            // A disk that is full keeps no journal; the worker is told all the same.
            let _ = journal.write_all(format!("exit {code}\n").as_bytes());
        }
        self.say(&code.to_string());
        if self.released {
            self.release();
        }
        true
    }

    /// Ends what is left of it. A script that runs is killed, and released when it has ended.
    pub(super) fn release(&mut self) {
        self.released = true;
        self.signal(Signal::SIGKILL);
        if self.has_ended() {
            let _ = waitid(Id::Pid(self.leader), WaitPidFlag::WEXITED);
            self.state = State::Going(Instant::now() + DYING_MAX);
        }
    }

    /// Whether nothing of it is left, or nothing more can be done about it.
    pub(super) fn is_gone(&self, now: Instant) -> bool {
        match self.state {
            State::Unstarted => self.released,
            State::Starting(_) | State::Running | State::Ended => false,
            State::Going(until) => is_group_empty(self.leader) || now >= until,
        }
    }

    /// Whether somebody has to look when it is gone.
    pub(super) fn is_going(&self) -> bool {
        matches!(self.state, State::Going(_))
    }

    /// Tells its worker, in one write of one line.
    fn say(&mut self, line: &str) {
        // It never waits. Only a job that writes to it can have filled the pipe; its worker, which
        // reads that, looks into the journal then.
        let _ = self.end.write_all(format!("{line}\n").as_bytes());
    }
}

/// Opens a pipe of the attempt at `attempt` for its script, which waits when the pipe is full. Does
/// not wait for its other end.
fn open(attempt: &Path, pipe: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(attempt.join(pipe))
}

/// Opens a pipe of the attempt at `attempt` for this process. Neither this nor a use of it waits.
fn open_nonblocking(attempt: &Path, pipe: &str, write: bool) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK.bits();
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(attempt.join(pipe))
}

/// Starts something under the soft limit `files` of open files, and goes on under the old one.
/// Programs that use `select`, or that close every number up to the limit, break or crawl under a
/// limit of a million.
fn with_limit<T>(files: Option<u64>, start: impl FnOnce() -> T) -> T {
    let old = files.and_then(|files| {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        setrlimit(Resource::RLIMIT_NOFILE, files, hard).ok()?;
        Some((soft, hard))
    });
    let started = start();
    if let Some((soft, hard)) = old {
        // It was allowed a moment ago.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    }
    started
}
