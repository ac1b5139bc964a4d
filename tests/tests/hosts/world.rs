//! A server, three workers and a client, each on a machine of its own, over TLS; and what can
//! happen to them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use towpath_tests::program;

use crate::lan::Lan;

pub(crate) const WORKERS: [&str; 3] = ["w1", "w2", "w3"];
const SERVER: &str = "server";
const SLOTS: &str = "4";
/// The shortest lease there is. A beat that comes late on a busy machine is one trouble more.
pub(crate) const LEASE: Duration = Duration::from_secs(1);
/// How long anything may take that is not the run itself.
const WAIT_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The machines, and what runs on them.
#[derive(Debug)]
pub(crate) struct World {
    program: PathBuf,
    folder: tempfile::TempDir,
    server: Option<Child>,
    workers: [Option<Child>; WORKERS.len()],
    client: Option<Child>,
    token: String,
    starts: usize,
    /// Last: the kernel removes a namespace with its last process.
    lan: Lan,
}

impl World {
    /// A server and its workers, connected; or why that is not permitted here.
    pub(crate) fn build() -> Result<Self, String> {
        let mut machines = vec![SERVER];
        machines.extend(WORKERS);
        let lan = Lan::build(&machines)?;
        let mut world = Self {
            program: program(),
            folder: tempfile::tempdir().expect("a folder"),
            server: None,
            workers: [None, None, None],
            client: None,
            token: String::new(),
            starts: 0,
            lan,
        };
        let pki = world.path("pki").display().to_string();
        world.ask(&["pki", "init", "--dir", &pki]);
        world.ask(&["pki", "issue", "--dir", &pki, "--server", &Lan::address(1)]);
        for worker in WORKERS {
            world.ask(&["pki", "issue", "--dir", &pki, "--worker", worker]);
        }
        world.start_server();
        let token = ["token", "issue", "--name", "ana", "--role", "operator"];
        world.token = world.ask(&token).trim().to_owned();
        for worker in 0..WORKERS.len() {
            world.start_worker(worker);
        }
        Ok(world)
    }

    /// A path in the folder that all machines share.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What `tow`, on the machine of the store, answers to `arguments`.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let command = Command::new(&self.program);
        let asked = self.furnish(command).args(arguments).output().expect("`tow` can be run");
        let said = String::from_utf8_lossy(&asked.stderr);
        assert!(asked.status.success(), "`tow {}`: {said}", arguments.join(" "));
        String::from_utf8(asked.stdout).expect("text")
    }

    /// Starts the server, on the store that the last one left, and waits until it is there.
    pub(crate) fn start_server(&mut self) {
        let mut command = self.lan.on(SERVER, &self.program);
        let own = format!("pki/server-{}", Lan::address(1));
        command
            .args(["serve", "--listen", &Lan::address(1), "--client-ca", "pki/ca.pem"])
            .args(["--tls-cert", &format!("{own}.pem"), "--tls-key", &format!("{own}.key")])
            .args(["--lease", &format!("{}s", LEASE.as_secs())]);
        let (server, said) = self.start(command, SERVER);
        self.server = Some(server);
        until("the server listens", || {
            fs::read_to_string(&said).unwrap_or_default().contains("listening on")
        });
    }

    /// Starts the worker with the name and the certificate of `WORKERS[worker]`.
    pub(crate) fn start_worker(&mut self, worker: usize) {
        let name = WORKERS[worker];
        let mut command = self.lan.on(name, &self.program);
        command
            .args(["worker", "--server", &Lan::address(1), "--name", name, "--slots", SLOTS])
            .args(["--tls-cert", &format!("pki/worker-{name}.pem"), "--tls-ca", "pki/ca.pem"])
            .args(["--tls-key", &format!("pki/worker-{name}.key")])
            .args(["--attempts", &format!("attempts-{name}")]);
        self.workers[worker] = Some(self.start(command, name).0);
    }

    /// Starts a client that begins a run of `towpath.yml` and follows it.
    pub(crate) fn start_run(&mut self) {
        let mut command = self.lan.elsewhere(&self.program);
        command
            .args([
                "run",
                "--source",
                "folder",
                "--server",
                &Lan::address(1),
                "--tls-ca",
                "pki/ca.pem",
            ])
            .args(["--parallelism", "12"])
            .env("TOW_TOKEN", &self.token);
        self.client = Some(self.start(command, "client").0);
    }

    /// Whether the client still follows its run.
    pub(crate) fn is_following(&mut self) -> bool {
        let client = self.client.as_mut().expect("a client");
        client.try_wait().expect("a child can be waited for").is_none()
    }

    /// How the client ended.
    pub(crate) fn client_ended(&mut self) -> ExitStatus {
        self.client.as_mut().expect("a client").wait().expect("a child can be waited for")
    }

    pub(crate) fn cut(&self, worker: usize) {
        self.lan.cut(WORKERS[worker]);
    }

    pub(crate) fn join(&self, worker: usize) {
        self.lan.join(WORKERS[worker]);
    }

    pub(crate) fn kill_server(&mut self) {
        ended(self.server.take(), Signal::SIGKILL);
    }

    pub(crate) fn kill_worker(&mut self, worker: usize) {
        ended(self.workers[worker].take(), Signal::SIGKILL);
    }

    /// Sends a worker a signal that it survives.
    pub(crate) fn signal(&self, worker: usize, signal: Signal) {
        let worker = self.workers[worker].as_ref().expect("a worker");
        kill(pid(worker), signal).expect("it can be sent a signal");
    }

    /// Lets a worker finish what it holds, and waits until it has gone by itself.
    pub(crate) fn drain(&mut self, worker: usize) {
        let status = ended(self.workers[worker].take(), Signal::SIGTERM);
        assert!(status.success(), "{} drained: {status}", WORKERS[worker]);
    }

    /// Stops everybody, in good order.
    pub(crate) fn close(&mut self) {
        for worker in 0..WORKERS.len() {
            self.drain(worker);
        }
        let status = ended(self.server.take(), Signal::SIGTERM);
        assert!(status.success(), "the server stopped: {status}");
    }

    /// The processes that are a job's, or that a job left behind.
    pub(crate) fn processes_of_jobs(&self) -> Vec<Pid> {
        let mark = format!("TOW_OUTPUT={}/", self.folder.path().display());
        let of_a_job = |process: &Path| {
            fs::read(process.join("environ")).is_ok_and(|environ| {
                environ.split(|&byte| byte == 0).any(|entry| entry.starts_with(mark.as_bytes()))
            })
        };
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter(|process| of_a_job(&process.path()))
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .map(Pid::from_raw)
            .collect()
    }

    /// The last lines of all logs, to diagnose a failed test.
    fn said(&self) -> String {
        let mut all = String::new();
        for start in 1..=self.starts {
            let (name, text) = self.log(start);
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(8)..].join("\n");
            all.push_str(&format!("--- {name}\n{last}\n"));
        }
        all
    }

    fn log(&self, start: usize) -> (String, String) {
        let files = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let mut names = files.filter_map(|file| file.file_name().into_string().ok());
        let name = names.find(|name| name.starts_with(&format!("{start:03}-")));
        let name = name.unwrap_or_default();
        let text = fs::read_to_string(self.path(&name)).unwrap_or_default();
        (name, text)
    }

    /// Starts a process that says what it says into a file; answers where.
    fn start(&mut self, command: Command, name: &str) -> (Child, PathBuf) {
        self.starts += 1;
        let said = self.path(&format!("{:03}-{name}.log", self.starts));
        let file = File::create(&said).expect("a file");
        let again = file.try_clone().expect("a file");
        let mut command = self.furnish(command);
        let child = command.stdin(Stdio::null()).stdout(file).stderr(again).spawn();
        (child.expect("`tow` can be started"), said)
    }

    fn furnish(&self, mut command: Command) -> Command {
        for name in ["TOW_SERVER", "TOW_CONFIG", "TOW_ACTOR", "TOW_LISTEN"] {
            command.env_remove(name);
        }
        let store = format!("sled:{}", self.path("store").display());
        command.current_dir(self.folder.path()).env("TOW_STORE", store).env("TOW_LOG", "warn");
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            crate::say(&self.said());
        }
        let own = [self.server.take(), self.client.take()];
        let workers = self.workers.iter_mut().map(Option::take);
        for mut child in own.into_iter().chain(workers).flatten() {
            drop(child.kill());
            drop(child.wait());
        }
        for process in self.processes_of_jobs() {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

/// Waits until `holds` says yes.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {WAIT_MAX:?}");
        thread::sleep(LOOK_EVERY);
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid"))
}

/// Sends `signal` and waits for the end. A process that does not end is killed.
fn ended(child: Option<Child>, signal: Signal) -> ExitStatus {
    let mut child = child.expect("it runs");
    kill(pid(&child), signal).expect("it can be sent a signal");
    let deadline = Instant::now() + WAIT_MAX;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        thread::sleep(LOOK_EVERY);
    }
    drop(child.kill());
    child.wait().expect("a child can be waited for")
}
