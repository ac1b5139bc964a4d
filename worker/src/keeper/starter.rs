//! Starts programs on a thread that may wait.
//!
//! To start a program is to wait until the system has entered its working directory and read its
//! first bytes. On a file system that does not answer this takes for ever, and the thread that
//! takes requests and notices ends must not wait with it. So a thread of its own starts a program,
//! and is waited for as long as a start takes otherwise; one that takes longer is left alone, and
//! the next program has another thread.

use std::{
    fs,
    io::{self, ErrorKind},
    process::{Child, Command},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, gettid},
};

/// How long a start is waited for.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// How long it is waited for if the system has not even made a process yet: it is busy, and the
/// limits that the process is to have are those of this process until then.
const FORK_WAIT_MAX: Duration = Duration::from_secs(1);
/// How often a start that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes of stack of such a thread: it calls one function.
const STACK_BYTES: usize = 128 * 1024;

/// Starts one program after the other.
#[derive(Debug, Default)]
pub(super) struct Starter {
    /// The thread of the latest start, unless that still waits.
    idle: Option<StartThread>,
}

/// A start that takes long.
#[derive(Debug)]
pub(super) struct SlowStart {
    thread: StartThread,
    /// The children that the thread started before. It starts no others.
    before: Vec<i32>,
}

#[derive(Debug)]
struct StartThread {
    id: Pid,
    commands: Sender<Command>,
    started: Receiver<io::Result<Child>>,
}

impl Starter {
    /// Makes sure that there is a thread for the next start.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        if self.idle.is_none() {
            self.idle = Some(StartThread::new()?);
        }
        Ok(())
    }

    /// Starts `command`, in a process whose other children that run programs are `leaders`. An
    /// error: that takes long.
    pub(super) fn start(
        &mut self,
        command: Command,
        leaders: impl Fn() -> Vec<i32>,
    ) -> Result<io::Result<Child>, SlowStart> {
        let ready = self.prepare();
        let Some(mut thread) = self.idle.take() else { return Ok(ready.and(Err(stopped()))) };
        if thread.commands.send(command).is_err() {
            return Ok(Err(stopped()));
        }
        let began = Instant::now();
        loop {
            match thread.started.recv_timeout(LOOK_EVERY) {
                Ok(started) => {
                    self.idle = Some(thread);
                    return Ok(started);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(Err(stopped())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let waited = began.elapsed();
            if waited < WAIT_MAX {
                continue;
            }
            let slow = SlowStart { thread, before: leaders() };
            if waited >= FORK_WAIT_MAX || !slow.children().is_empty() {
                return Err(slow);
            }
            thread = slow.thread;
        }
    }
}

impl SlowStart {
    /// What came of it. `None`: it still waits.
    pub(super) fn poll(&self) -> Option<io::Result<Child>> {
        match self.thread.started.try_recv() {
            Ok(started) => Some(started),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(stopped())),
        }
    }

    /// Ends it, if the system lets the process that waits be ended.
    pub(super) fn kill(&self) {
        for child in self.children() {
            // It has no group and no program of its own yet, and ignores whatever can be ignored.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
    }

    /// The process that is being started, once there is one.
    pub(super) fn children(&self) -> Vec<i32> {
        let path = format!("/proc/self/task/{}/children", self.thread.id);
        let list = fs::read_to_string(path).unwrap_or_default();
        let all = list.split_whitespace().filter_map(|pid| pid.parse().ok());
        all.filter(|child| !self.before.contains(child)).collect()
    }
}

impl StartThread {
    fn new() -> io::Result<Self> {
        let (commands, asked) = mpsc::channel::<Command>();
        let (say, started) = mpsc::channel();
        let (say_id, id) = mpsc::channel();
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            if say_id.send(gettid()).is_err() {
                return;
            }
            // It ends when nobody has another command, and not before what it said was taken: its
            // child would become another thread's, and could not be told from an orphan.
            for mut command in asked {
                if say.send(command.spawn()).is_err() {
                    return;
                }
            }
        })?;
        let id = id.recv().map_err(|_| stopped())?;
        Ok(Self { id, commands, started })
    }
}

fn stopped() -> io::Error {
    io::Error::new(ErrorKind::BrokenPipe, "the thread that starts programs has ended")
}
