//! Runs that bring their files along, with the real program on both ends and real git between.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

const WAIT_MAX: Duration = Duration::from_secs(60);
const PIPELINE: &str = "version: \"1.0\"
stages: [s]
jobs:
  a: {stage: s, command: cat data.txt ../top.txt}
";

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A yard with a pipeline in a git repository, a server, and room for workers.
struct Yard {
    folder: tempfile::TempDir,
    address: String,
    server: Option<Running>,
}

impl Yard {
    fn new() -> Self {
        let mut yard = Self {
            folder: tempfile::tempdir().expect("a folder"),
            address: String::new(),
            server: None,
        };
        let store = yard.store();
        let args = ["serve", "--store", &store, "--listen", "127.0.0.1:0", "--output", "jsonl"];
        let mut child = yard.tow(yard.path(), &args).spawn().expect("a server");
        let mut line = String::new();
        let out = child.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let ready: Value = serde_json::from_str(&line).expect("the server is ready");
        yard.address = ready["address"].as_str().expect("an address").to_owned();
        yard.server = Some(Running(child));
        for (path, text) in [
            ("repository/db/towpath.yml", PIPELINE),
            ("repository/db/data.txt", "data\n"),
            ("repository/top.txt", "top\n"),
            ("repository/.gitignore", "ignored\n.towpath/\n"),
        ] {
            yard.write(path, text);
        }
        yard.git(&["init", "--quiet", "--initial-branch=main"]);
        yard.commit();
        yard
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    fn store(&self) -> String {
        format!("sled:{}", self.at("store").display())
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    /// `tow` in `folder`, with nothing of the environment but what it needs.
    fn tow(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(snapbox::cmd::cargo_bin!("tow"));
        command
            .args(args)
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("USER", "ana")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if !self.address.is_empty() && !args.contains(&"--store") {
            command.env("TOW_SERVER", &self.address);
        }
        command
    }

    fn git(&self, args: &[&str]) {
        let settings =
            ["user.email=ana@example.org", "user.name=Ana", "protocol.file.allow=always"];
        let mut git = Command::new("git");
        git.current_dir(self.at("repository")).env_clear().env("HOME", self.path());
        git.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for setting in settings {
            git.args(["-c", setting]);
        }
        let done = git.args(args).output().expect("git runs");
        assert!(done.status.success(), "git {args:?}: {}", text(&done));
    }

    fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "files"]);
    }

    fn worker(&self, name: &str, more: &[&str]) -> Running {
        let attempts = self.at(name).display().to_string();
        let args = [&["worker", "--name", name, "--attempts", &attempts], more].concat();
        Running(self.tow(self.path(), &args).spawn().expect("a worker"))
    }

    /// What `tow` says in the pipeline's folder, and its exit code.
    fn say(&self, args: &[&str]) -> (i32, String) {
        let said = self.tow(&self.at("repository/db"), args).output().expect("tow runs");
        (said.status.code().expect("a code"), text(&said))
    }

    /// Begins a run and answers its id.
    fn begin(&self, folder: &str, more: &[&str]) -> String {
        let args = [&["run", "--detach", "--output", "json"], more].concat();
        let said = self.tow(&self.at(folder), &args).output().expect("tow runs");
        assert!(said.status.success(), "{}", text(&said));
        let run: Value = serde_json::from_slice(&said.stdout).expect("JSON");
        run["id"].as_str().expect("an id").to_owned()
    }

    fn status(&self, run: &str) -> Value {
        let said = self.tow(self.path(), &["status", "--output", "json", run]).output();
        serde_json::from_slice(&said.expect("tow runs").stdout).expect("JSON")
    }

    /// Waits until the run has ended; answers how.
    fn ended(&self, run: &str) -> String {
        let mut phase = String::new();
        until("the end of the run", || {
            let status = self.status(run);
            phase = status["outcome"].as_str().unwrap_or_default().to_owned();
            !phase.is_empty()
        });
        phase
    }

    fn printed(&self, run: &str, job: &str) -> String {
        text(&self.tow(self.path(), &["logs", "--run", run, job]).output().expect("tow runs"))
    }

    /// Stops the server, and looks after the store.
    fn doctor(&mut self) -> (i32, String) {
        self.server = None;
        self.say(&["doctor", "--store", &self.store()])
    }
}

fn text(said: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < WAIT_MAX, "{what} never came");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_run_continues_without_its_source_directory_and_a_backup_has_its_files() {
    let mut yard = Yard::new();
    let run = yard.begin("repository/db", &[]);
    fs::remove_dir_all(yard.at("repository")).expect("it is there");
    fs::create_dir_all(yard.at("repository/db")).expect("an empty folder");

    let workers = [yard.worker("one", &[]), yard.worker("two", &[])];
    assert_eq!(yard.ended(&run), "succeeded");

    assert_eq!(yard.printed(&run, "a"), "data\ntop\n");
    let source = yard.status(&run)["source"].clone();
    assert_eq!((&source["folder"], &source["dirty"]), (&"db".into(), &false.into()));
    drop(workers);
    let (code, said) = yard.doctor();
    assert_eq!(code, 0, "{said}");
    let store = yard.store();
    let backup = yard.at("backup").display().to_string();
    let restored = format!("sled:{}", yard.at("restored").display());
    for args in [["backup", "--store", &store, &backup], ["restore", "--store", &restored, &backup]]
    {
        let (code, said) = yard.say(&args);
        assert_eq!(code, 0, "{said}");
    }
    let sha256 = source["bundle"]["sha256"].as_str().expect("a digest");
    let bundle = yard.at("restored/blobs").join(&sha256[..2]).join(sha256);
    assert_eq!(yard.say(&["doctor", "--store", &restored]).0, 0);
    fs::remove_file(bundle).expect("the bundle is in the backup");
    let (code, said) = yard.say(&["doctor", "--store", &restored]);
    assert!(code == 7 && said.contains("its bundle"), "{said}");
}

#[test]
fn what_is_not_committed_is_named_and_goes_along_only_if_asked() {
    let yard = Yard::new();
    let _worker = yard.worker("one", &[]);
    yard.write("repository/top.txt", "changed\n");
    yard.write("repository/db/new.txt", "new\n");
    yard.write("repository/db/ignored", "x");
    yard.write("repository/elsewhere.txt", "x");

    let (code, said) = yard.say(&["run"]);
    assert_eq!(code, 6, "{said}");
    assert!(
        said.contains("error[SOURCE_DIRTY]: not everything is committed: `db/new.txt`, `top.txt`"),
        "{said}"
    );
    let (code, said) = yard.say(&["run", "--source", "remote", "--allow-dirty"]);
    assert!(code == 6 && said.contains("SOURCE_DIRTY"), "{said}");

    let pipeline = PIPELINE.replace("cat data.txt", "ls -A . ..; cat data.txt");
    yard.write("repository/db/towpath.yml", &pipeline);
    let run = yard.begin("repository/db", &["--allow-dirty"]);
    assert_eq!(yard.ended(&run), "succeeded");
    let printed = yard.printed(&run, "a");
    assert!(printed.contains("new.txt") && printed.ends_with("data\nchanged\n"), "{printed}");
    assert!(!printed.contains("ignored\n..") && !printed.contains("elsewhere"), "{printed}");
    let source = yard.status(&run)["source"].clone();
    assert_eq!(source["dirty"], true);
    assert_eq!(source["parent"].as_str().map(str::len), Some(40));
    assert!(!yard.at("repository/.git/objects").join("pack/x").exists());
    // The same files are the same bundle: no second commit is made.
    let again = yard.begin("repository/db", &["--allow-dirty"]);
    assert_eq!(yard.status(&again)["source"], source);
}

#[test]
fn a_folder_outside_of_git_travels_without_what_is_ignored() {
    let yard = Yard::new();
    let _worker = yard.worker("one", &[]);
    let pipeline = PIPELINE.replace("cat data.txt ../top.txt", "find . -type f | sort; ls -l run");
    yard.write("plain/towpath.yml", &pipeline);
    yard.write("plain/.gitignore", "*.log\n");
    yard.write("plain/big.log", "x");
    yard.write("plain/.towpath/secret", "x");
    yard.write("plain/run", "#!/bin/sh\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(yard.at("plain/run"), mode).expect("a program");

    let run = yard.begin("plain", &[]);

    assert_eq!(yard.ended(&run), "succeeded");
    let printed = yard.printed(&run, "a");
    assert!(printed.starts_with("./.gitignore\n./run\n./towpath.yml\n-rwx"), "{printed}");
    assert!(!yard.at("plain/.git").exists());
}

#[test]
fn what_cannot_travel_is_refused_with_its_name() {
    let yard = Yard::new();
    std::os::unix::fs::symlink("/etc/passwd", yard.at("repository/db/out")).expect("a link");
    yard.commit();
    let (code, said) = yard.say(&["run", "--detach"]);
    assert!(code == 5 && said.contains("error[SOURCE_LINK]: the link `db/out`"), "{said}");
    fs::remove_file(yard.at("repository/db/out")).expect("the link");

    let large = fs::File::create(yard.at("repository/db/large.bin")).expect("a file");
    large.set_len(300 * 1024 * 1024).expect("a long one");
    let (code, said) = yard.say(&["run", "--detach", "--allow-dirty"]);
    assert!(code == 5 && said.contains("error[SOURCE_TOO_LARGE]: `db/large.bin` has"), "{said}");
    fs::remove_file(yard.at("repository/db/large.bin")).expect("the file");

    let within = yard.at("repository").display().to_string();
    yard.git(&["submodule", "--quiet", "add", &within, "within"]);
    yard.commit();
    let (code, said) = yard.say(&["run", "--detach"]);
    assert!(
        code == 5 && said.contains("error[SOURCE_UNUSABLE]: `within` is a submodule"),
        "{said}"
    );

    yard.write("repository/db/ignored", PIPELINE);
    let (code, said) = yard.say(&["run", "--detach", "ignored"]);
    assert!(code == 6 && said.contains("SOURCE_DIRTY"), "{said}");
    let (code, said) = yard.say(&["run", "--detach", "--allow-dirty", "ignored"]);
    assert!(code == 5 && said.contains("error[SOURCE_UNUSABLE]: git ignores `ignored`"), "{said}");

    let (code, said) = yard.say(&["run", "--detach", "--source", "remote"]);
    assert!(code == 5 && said.contains("error[SOURCE_UNUSABLE]"), "{said}");
    let (code, said) = yard.say(&["run", "--detach", "--source", "folder"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn a_remote_hands_over_exactly_the_commit_if_the_worker_may_ask_it() {
    let yard = Yard::new();
    let bare = yard.at("bare.git").display().to_string();
    yard.git(&["clone", "--quiet", "--bare", ".", &bare]);
    yard.git(&["remote", "add", "origin", "https://ana:secret@example.org/a.git"]);
    let (code, said) = yard.say(&["run", "--detach", "--source", "remote"]);
    assert!(code == 5 && said.contains("carries a user or a password"), "{said}");
    assert!(!said.contains("secret"), "{said}");
    yard.git(&["remote", "set-url", "origin", &format!("file://{bare}")]);
    let run = yard.begin("repository/db", &["--source", "remote"]);
    // What comes later is not what was frozen.
    yard.write("repository/db/data.txt", "later\n");
    yard.commit();
    yard.git(&["push", "--quiet", "origin", "main"]);

    let worker = yard.worker("careful", &[]);
    assert_eq!(yard.ended(&run), "failed");
    let reason = yard.status(&run)["jobs"][0]["failure"]["message"].to_string();
    assert!(
        reason.contains("cannot be fetched") && reason.contains("--allow-file-remotes"),
        "{reason}"
    );
    drop(worker);

    let _worker = yard.worker("trusting", &["--allow-file-remotes"]);
    let (code, said) = yard.say(&["retry", "--run", &run, "a"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(yard.ended(&run), "succeeded");
    assert_eq!(yard.printed(&run, "a"), "data\ntop\n");
    assert_eq!(yard.status(&run)["source"]["remote"], format!("file://{bare}"));

    // A commit that the remote does not have: said at once, and again by the worker.
    yard.write("repository/db/data.txt", "never pushed\n");
    yard.commit();
    let (_, said) = yard.say(&["run", "--detach", "--source", "remote"]);
    assert!(said.contains("No branch or tag of file://"), "{said}");
    assert_eq!(yard.ended("@latest"), "failed");
}

#[test]
fn a_job_keeps_its_folder_when_its_worker_is_killed_and_comes_back() {
    let mut yard = Yard::new();
    let script = "echo first >made; touch $MEET-began; until [ -e $MEET-go ]; do sleep 0.01; done; cat made ../top.txt";
    let pipeline = PIPELINE.replace(
        "command: cat data.txt ../top.txt",
        &format!(
            "command: '{script}', artifacts: [made], env: {{MEET: '{}'}}",
            yard.at("meet").display()
        ),
    );
    yard.write("repository/db/towpath.yml", &pipeline);
    yard.commit();
    let worker = yard.worker("w", &[]);
    let run = yard.begin("repository/db", &[]);
    until("the beginning of the job", || yard.at("meet-began").exists());
    // SIGKILL: no process is left to clean up.
    drop(worker);
    yard.write("w/work/of-nobody.1/x", "x");
    let _worker = yard.worker("w", &[]);
    until("the sweep", || !yard.at("w/work/of-nobody.1").exists());
    yard.write("meet-go", "");

    assert_eq!(yard.ended(&run), "succeeded");
    assert_eq!(yard.printed(&run, "a"), "first\ntop\n");
    let job = yard.status(&run)["jobs"][0].clone();
    assert_eq!((&job["attempt"], &job["artifacts"][0]["path"]), (&1.into(), &"made".into()));
    until("an empty folder", || {
        fs::read_dir(yard.at("w/work")).is_ok_and(|mut all| all.next().is_none())
    });
    assert_eq!(yard.doctor().0, 0);
}

#[test]
fn edited_files_are_taken_over_when_the_edit_is_accepted() {
    let yard = Yard::new();
    let pipeline = PIPELINE.replace("cat data.txt ../top.txt", "grep right data.txt");
    yard.write("repository/db/towpath.yml", &pipeline);
    yard.commit();
    let _worker = yard.worker("w", &["--keep-work"]);
    let run = yard.begin("repository/db", &[]);
    assert_eq!(yard.ended(&run), "failed");
    let kept = yard.at(&format!("w/kept/{run}.a.1/db/data.txt"));
    until("the folder of the failed attempt", || kept.exists());
    yard.write("repository/db/data.txt", "right\n");

    // The frozen files stay what they were.
    let (code, said) = yard.say(&["resume", &run]);
    assert_eq!(code, 10, "{said}");
    let (code, said) = yard.say(&["resume", "--accept-changes", &run]);
    assert!(code == 6 && said.contains("SOURCE_DIRTY"), "{said}");
    yard.commit();
    let (code, said) = yard.say(&["resume", "--accept-changes", &run]);

    assert_eq!(code, 0, "{said}");
    assert_eq!(yard.printed(&run, "a"), "right\n");
}

#[test]
fn a_worker_that_is_to_end_waits_for_a_lost_server_only_so_long() {
    let mut yard = Yard::new();
    let waits = "touch begun; while [ ! -e go ]; do sleep 0.05; done";
    let file = format!("stages: [s]\njobs:\n  a: {{stage: s, command: \"{waits}\"}}\n");
    yard.write("shared/towpath.yml", &file);
    yard.begin("shared", &["--source", "folder"]);
    let bounds = ["--once", "--idle-timeout", "30s", "--report-timeout", "1s"];
    let mut worker = yard.worker("w", &bounds);
    until("the job", || yard.at("shared/begun").exists());

    yard.server = None;
    yard.write("shared/go", "");

    until("the end of the worker", || worker.0.try_wait().is_ok_and(|ended| ended.is_some()));
    let mut said = String::new();
    worker.0.stderr.take().expect("its stderr").read_to_string(&mut said).expect("text");
    assert_eq!(worker.0.wait().expect("it has ended").code(), Some(42), "{said}");
    assert!(
        said.contains("no server accepted the reports of 1 ended attempts within 1 s"),
        "{said}"
    );
}
