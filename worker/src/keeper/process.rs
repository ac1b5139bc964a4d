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
    // Without a runtime's readiness, which may be older than what was asked for last.
    let newer = listener.try_clone()?;
    runtime.block_on(async {
        let keeper = Keeper {
            newer: Some(newer),
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
    /// Where a newer worker connects.
    newer: Option<StdListener>,
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
        self.orphans.end_marked(&self.children());
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
        self.worker = Some(Connection { stream, greeted: false, read: Vec::new() });
    }

    /// Takes a worker that connects at this moment. Returns whether there was one.
    fn take_newer_worker(&mut self) -> bool {
        let Some(Ok((stream, _))) = self.newer.as_ref().map(StdListener::accept) else {
            return false;
        };
        let nonblocking = stream.set_nonblocking(true);
        match nonblocking.and_then(|()| UnixStream::from_std(stream)) {
            Ok(stream) => self.take_worker(stream),
            // It sees that nobody listens to it, and connects again.
            Err(_) => self.worker = None,
        }
        true
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            // Asked for before a newer worker came: the other has ended, and nobody watches it.
            Request::Start(start) if !self.take_newer_worker() => self.start(start),
            Request::Start(_) => {}
            Request::AskToEnd { attempt } => {
                self.waiting.retain(|start| start.attempt != attempt);
                if let Some(script) = self.scripts.get_mut(&attempt) {
                    script.signal(Signal::SIGTERM);
                }
            }
            Request::Kill { attempt } => {
                if let Some(script) = self.scripts.get_mut(&attempt) {
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
        let scripts = &self.scripts;
        let leaders = || leaders(scripts);
        match KeptScript::start(&start, &mut self.surroundings, leaders) {
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
        self.orphans.reap(&self.children());
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

    /// The children that scripts of this process are or begin with.
    fn children(&self) -> Vec<i32> {
        self.scripts.values().flat_map(KeptScript::children).collect()
    }

    /// The next moment at which something must be done unasked.
    fn due(&self) -> Option<Instant> {
        let looks = |script: &KeptScript| script.is_going() || script.is_starting();
        let going = self.scripts.values().any(looks).then_some(GOING_PAUSE);
        let waiting = (!self.waiting.is_empty()).then_some(START_PAUSE);
        let soon = going.into_iter().chain(waiting).min().map(|pause| Instant::now() + pause);
        let looks = [self.orphans.due(), self.first_until, self.abandoned_look];
        soon.into_iter().chain(looks.into_iter().flatten()).min()
    }

    fn do_what_is_due(&mut self) {
        for script in self.scripts.values_mut().filter(|script| script.is_starting()) {
            script.look();
        }
        self.forget_gone();
        self.start_waiting();
        if self.orphans.due().is_some_and(|due| due <= Instant::now()) {
            self.orphans.end_marked(&self.children());
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

/// The first processes of scripts.
fn leaders(scripts: &BTreeMap<PathBuf, KeptScript>) -> Vec<i32> {
    scripts.values().filter_map(KeptScript::leader).map(nix::unistd::Pid::as_raw).collect()
}

/// A worker that is connected.
struct Connection {
    stream: UnixStream,
    /// It was told that it is the worker of this process now.
    greeted: bool,
    /// What was read and is no whole request yet.
    read: Vec<u8>,
}

/// The next request. `None`: the worker has ended, or what it sends is no request. May be dropped
/// while it waits without losing a byte.
async fn next_of(worker: &mut Option<Connection>) -> Option<Request> {
    let Connection { stream, greeted, read } = worker.as_mut()?;
    while !*greeted {
        stream.writable().await.ok()?;
        match stream.try_write(&[HELLO]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A worker that is gone again may have asked for something before: the reads say so.
            Ok(_) | Err(_) => *greeted = true,
        }
    }
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
    use std::{
        fs::{self, File},
        path::Path,
    };

    use nix::{
        sys::{
            stat::Mode,
            wait::{Id, WaitPidFlag, waitid},
        },
        unistd::mkfifo,
    };

    use super::*;

    fn keeper() -> Keeper {
        Keeper {
            newer: None,
            surroundings: Surroundings::new(None).unwrap(),
            scripts: BTreeMap::new(),
            waiting: Vec::new(),
            orphans: Orphans::default(),
            worker: None,
            first_until: None,
            abandoned_look: None,
        }
    }

    /// What starts `program` as an attempt of its own in `folder`.
    fn start_of(program: &Path, folder: &Path, attempt: &str) -> Start {
        let attempt = folder.join(attempt);
        fs::create_dir(&attempt).unwrap();
        for name in ["out", "err", "end"] {
            mkfifo(&attempt.join(name), Mode::S_IRWXU).unwrap();
        }
        File::create(crate::journal::path(&attempt)).unwrap();
        let (program, folder) = (program.into(), folder.into());
        Start { attempt, program, arguments: Vec::new(), variables: Vec::new(), folder }
    }

    /// Lets scripts end, for ten seconds at most, and answers what is said of the one at `attempt`.
    fn said(keeper: &mut Keeper, attempt: &Path) -> String {
        let mut end = crate::output_pipe::open_pipe(&attempt.join("end")).unwrap();
        let mut said = [0; 64];
        for _ in 0..2_000 {
            keeper.do_what_is_due();
            keeper.note_ends();
            if let Ok(length) = io::Read::read(&mut end, &mut said) {
                return String::from_utf8_lossy(&said[..length]).trim_end().to_owned();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nothing is said of {}", attempt.display());
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn a_start_that_takes_for_ever_holds_up_no_other() {
        // given: a program that another process writes, as the system allows: to start it waits
        let folder = tempfile::tempdir().unwrap();
        let slow = folder.path().join("slow");
        fs::copy("/bin/true", &slow).unwrap();
        let lease = "import fcntl,os,signal,sys\n\
            signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
            fd=os.open(sys.argv[1], os.O_WRONLY)\n\
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
            print('held', flush=True); sys.stdin.read()";
        let holder = std::process::Command::new("python3")
            .args(["-c", lease])
            .arg(&slow)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut holder) = holder else { return eprintln!("skipped: there is no python3") };
        let mut held = [0; 5];
        let heard = io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut held);
        if heard.is_err() {
            return eprintln!("skipped: this file system has no leases");
        }

        // when
        let mut keeper = keeper();
        let began = Instant::now();
        let first = start_of(&slow, folder.path(), "1");
        keeper.start(first.clone());
        let second = start_of(Path::new("/bin/true"), folder.path(), "2");
        keeper.start(second.clone());

        // then: another starts and ends, the one that waits is not an orphan, and it can be ended
        assert_eq!(said(&mut keeper, &second.attempt), "0");
        assert!(keeper.scripts[&first.attempt].is_starting(), "it was started all the same");
        assert!(keeper.is_needed());
        keeper.carry_out(Request::Kill { attempt: first.attempt.clone() });
        let killed = said(&mut keeper, &first.attempt);
        assert!(killed == "137" || killed.starts_with("unstarted "), "{killed}");
        assert!(began.elapsed() < Duration::from_secs(20), "it waited for the program");
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }

    #[test]
    fn an_ended_attempt_whose_directory_was_removed_is_kept_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let start = start_of(Path::new("/bin/true"), folder.path(), "1");
        let attempt = start.attempt.clone();
        let mut keeper = keeper();
        keeper.start(start);
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
