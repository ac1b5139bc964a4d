//! The keeper as a process: takes requests, waits for its children, and ends when no worker and no
//! script needs it any more.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::AsFd as _, unix::net::UnixListener as StdListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::{prctl, signal::Signal};
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    time::sleep_until,
};

use super::{
    HELLO,
    orphans::Orphans,
    request::{Request, Start},
    script::{KeptScript, Surroundings},
};

/// How often killed processes that are not gone yet are looked at.
const GOING_PAUSE: Duration = Duration::from_millis(10);
/// How long a start waits that found no file descriptors, before it is tried again.
const START_PAUSE: Duration = Duration::from_millis(100);
/// How long the worker that started this process may take to connect.
const FIRST_WORKER_MAX: Duration = Duration::from_secs(10);
/// How often a keeper without a worker looks whether the directories of ended attempts still exist.
const ABANDONED_PAUSE: Duration = Duration::from_secs(60);
/// Bytes that are read from the socket at once, at least.
const READ_BYTES: usize = 16 * 1024;

/// Keeps scripts until nobody needs that any more. `files`: see [`Surroundings::new`].
///
/// Its standard input is the socket that it listens on. The worker made it: were it made here, a
/// worker that comes right after a killed one could find no socket and take for dead a keeper that
/// is about to start a script.
pub(super) fn serve(files: Option<u64>) -> io::Result<()> {
    // A script runs as the same user, and could read the secrets of other jobs in this process.
    prctl::set_dumpable(false)?;
    // What leaves its script's group becomes a child of this process, and is found there.
    prctl::set_child_subreaper(true)?;
    let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let surroundings = Surroundings::new(files)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let keeper = Keeper {
            surroundings,
            scripts: BTreeMap::new(),
            waiting: Vec::new(),
            orphans: Orphans::default(),
            worker: None,
            first_until: Some(Instant::now() + FIRST_WORKER_MAX),
            abandoned_look: None,
        };
        keeper.run(UnixListener::from_std(listener)?).await
    })
}

struct Keeper {
    surroundings: Surroundings,
    /// By the directory of the attempt.
    scripts: BTreeMap<PathBuf, KeptScript>,
    /// Scripts that this process had no file descriptors for.
    waiting: Vec<Start>,
    orphans: Orphans,
    worker: Option<Connection>,
    /// Until when a worker that has never connected is waited for.
    first_until: Option<Instant>,
    /// When it is to be looked for attempts that nobody can adopt any more, while there is no worker.
    abandoned_look: Option<Instant>,
}

impl Keeper {
    async fn run(mut self, listener: UnixListener) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        while self.is_needed() {
            let due = self.due();
            tokio::select! {
                request = next_of(&mut self.worker), if self.worker.is_some() => match request {
                    Some(request) => self.carry_out(request),
                    None => {
                        self.worker = None;
                        self.abandoned_look = Some(Instant::now() + ABANDONED_PAUSE);
                    }
                },
                // Workers of one folder exclude each other: the one before has ended.
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        self.take_worker(stream);
                    }
                }
                _ = children.recv() => self.note_ends(),
                () = wait_until(due), if due.is_some() => self.do_what_is_due(),
            }
        }
        self.orphans.end_marked(&self.leaders());
        Ok(())
    }

    /// Whether a worker may still ask for something, or ask what became of a script.
    fn is_needed(&self) -> bool {
        let comes = self.first_until.is_some_and(|until| Instant::now() < until);
        comes || self.worker.is_some() || self.scripts.values().any(KeptScript::is_wanted)
    }

    /// A worker has connected. What the one before asked for and was not begun never will be: the
    /// new one takes an attempt without a beginning in its journal for never started.
    fn take_worker(&mut self, stream: UnixStream) {
        (self.first_until, self.abandoned_look) = (None, None);
        self.waiting.clear();
        // Fails if it has gone again, which the next read says.
        drop(stream.try_write(&[HELLO]));
        self.worker = Some(Connection { stream, read: Vec::new() });
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::Start(start) => self.start(start),
            Request::AskToEnd { attempt } => {
                self.waiting.retain(|start| start.attempt != attempt);
                if let Some(script) = self.scripts.get(&attempt) {
                    script.signal(Signal::SIGTERM);
                }
            }
            Request::Kill { attempt } => {
                if let Some(script) = self.scripts.get(&attempt) {
                    script.signal(Signal::SIGKILL);
                }
            }
            Request::Release { attempt } => {
                self.waiting.retain(|start| start.attempt != attempt);
                if let Some(script) = self.scripts.get_mut(&attempt) {
                    script.release();
                }
                self.forget_gone();
            }
        }
    }

    fn start(&mut self, start: Start) {
        match KeptScript::start(&start, &mut self.surroundings) {
            Ok(script) => drop(self.scripts.insert(start.attempt, script)),
            Err(_) => self.waiting.push(start),
        }
    }

    /// A child has ended.
    ///
    /// One signal may stand for several children, so each is asked about: 0.2 µs a script.
    fn note_ends(&mut self) {
        for script in self.scripts.values_mut() {
            script.look();
        }
        self.forget_gone();
        self.orphans.reap(&self.leaders());
        self.start_waiting();
    }

    /// Tries again to start what found no file descriptors.
    fn start_waiting(&mut self) {
        for start in std::mem::take(&mut self.waiting) {
            self.start(start);
        }
    }

    fn forget_gone(&mut self) {
        let (now, orphans) = (Instant::now(), &mut self.orphans);
        self.scripts.retain(|_, script| {
            let gone = script.is_gone(now);
            if gone {
                orphans.ended(script.mark(), now);
            }
            !gone
        });
    }

    fn leaders(&self) -> Vec<i32> {
        self.scripts.values().filter_map(KeptScript::leader).map(nix::unistd::Pid::as_raw).collect()
    }

    /// The next moment at which something must be done unasked.
    fn due(&self) -> Option<Instant> {
        let going = self.scripts.values().any(KeptScript::is_going).then_some(GOING_PAUSE);
        let waiting = (!self.waiting.is_empty()).then_some(START_PAUSE);
        let soon = going.into_iter().chain(waiting).min().map(|pause| Instant::now() + pause);
        let looks = [self.orphans.due(), self.first_until, self.abandoned_look];
        soon.into_iter().chain(looks.into_iter().flatten()).min()
    }

    fn do_what_is_due(&mut self) {
        self.forget_gone();
        self.start_waiting();
        if self.orphans.due().is_some_and(|due| due <= Instant::now()) {
            self.orphans.end_marked(&self.leaders());
        }
        let now = Instant::now();
        if self.abandoned_look.is_some_and(|look| look <= now) {
            self.abandoned_look = Some(now + ABANDONED_PAUSE);
            self.release_abandoned();
        }
    }

    /// Releases what has ended and whose directory was removed, with its store: no worker can adopt
    /// it, and this process would keep it for as long as the machine runs.
    fn release_abandoned(&mut self) {
        for (attempt, script) in &mut self.scripts {
            let removed = || {
                let found = attempt.symlink_metadata();
                found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            };
            if script.has_ended() && removed() {
                script.release();
            }
        }
        self.forget_gone();
    }
}

/// A worker that is connected.
struct Connection {
    stream: UnixStream,
    /// What was read and is no whole request yet.
    read: Vec<u8>,
}

/// The next request. `None`: the worker has ended, or what it sends is no request. May be dropped
/// while it waits without losing a byte.
async fn next_of(worker: &mut Option<Connection>) -> Option<Request> {
    let Connection { stream, read } = worker.as_mut()?;
    loop {
        if let Some((request, length)) = Request::first_of(read).ok()? {
            read.drain(..length);
            return Some(request);
        }
        read.reserve(READ_BYTES);
        if stream.read_buf(read).await.ok()? == 0 {
            return None;
        }
    }
}

async fn wait_until(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use nix::{
        sys::{
            stat::Mode,
            wait::{Id, WaitPidFlag, waitid},
        },
        unistd::mkfifo,
    };

    use super::*;

    #[test]
    fn an_ended_attempt_whose_directory_was_removed_is_kept_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = folder.path().join("1");
        fs::create_dir(&attempt).unwrap();
        for name in ["out", "err", "end"] {
            mkfifo(&attempt.join(name), Mode::S_IRWXU).unwrap();
        }
        File::create(crate::journal::path(&attempt)).unwrap();
        let mut keeper = Keeper {
            surroundings: Surroundings::new(None).unwrap(),
            scripts: BTreeMap::new(),
            waiting: Vec::new(),
            orphans: Orphans::default(),
            worker: None,
            first_until: None,
            abandoned_look: None,
        };
        keeper.start(Start {
            attempt: attempt.clone(),
            program: "/bin/true".into(),
            arguments: Vec::new(),
            variables: Vec::new(),
            folder: folder.path().into(),
        });
        let leader = keeper.scripts[&attempt].leader().unwrap();
        waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        keeper.scripts.get_mut(&attempt).unwrap().look();

        keeper.release_abandoned();
        assert!(keeper.is_needed(), "a worker may adopt it");
        fs::remove_dir_all(&attempt).unwrap();
        keeper.release_abandoned();
        assert!(!keeper.is_needed());
    }
}
