//! A server as its clients meet it: `tow` waits when it is told to, a reader that does not read
//! costs the server little, and servers have names.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `tow` in `folder`, with nothing of the environment but what it needs.
fn tow(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(snapbox::cmd::cargo_bin!("tow"));
    command
        .args(args)
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("USER", "ana")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A server over a store in `folder` with the settings `config`, and its address.
fn serve(folder: &Path, config: &str) -> (Running, String) {
    fs::write(folder.join("tow.toml"), config).expect("a file");
    let store = format!("sled:{}", folder.join("store").display());
    let args = ["serve", "--store", &store, "--listen", "127.0.0.1:0", "--output", "jsonl"];
    let mut child = tow(folder, &args).args(["--config", "tow.toml"]).spawn().expect("a server");
    let mut line = String::new();
    let out = child.stdout.take().expect("its output");
    BufReader::new(out).read_line(&mut line).expect("a line");
    let ready: Value = serde_json::from_str(&line).expect("the server is ready");
    (Running(child), ready["address"].as_str().expect("an address").to_owned())
}

fn said(command: &mut Command) -> Output {
    command.output().expect("tow runs")
}

#[test]
fn tow_waits_until_the_server_has_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_server, address) = serve(folder.path(), "[limits]\nrate = 2\nburst = 1\n");

    let begun = Instant::now();
    for _ in 0..2 {
        let listed = said(&mut tow(folder.path(), &["list", "--server", &address]));
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    }

    // Two requests each, the first of which was free.
    assert!(begun.elapsed() >= Duration::from_millis(1_400), "{:?}", begun.elapsed());
}

#[test]
fn readers_that_do_not_read_cost_the_server_little() {
    const READERS: usize = 30;
    let folder = tempfile::tempdir().expect("a folder");
    let (server, address) = serve(folder.path(), "");
    let yaml =
        "version: \"1.0\"\nstages: [s]\njobs:\n  a: {stage: s, command: 'yes | head -c 6000000'}\n";
    fs::write(folder.path().join("towpath.yml"), yaml).expect("a file");
    let begun = said(&mut tow(folder.path(), &["run", "--server", &address, "--detach"]));
    assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
    let worker = ["worker", "--server", &address, "--name", "w", "--once"];
    assert!(said(&mut tow(folder.path(), &worker)).status.success());
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.0.id())).expect("alive");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
        let number = line.split_whitespace().nth(1).expect("a number");
        number.parse::<usize>().expect("a number") / 1024
    };
    let before = resident();

    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut reader =
            Running(tow(folder.path(), &["logs", "a", "--server", &address]).spawn().expect("tow"));
        // One line has come, so the stream is open; the next is never read.
        let mut out = BufReader::new(reader.0.stdout.take().expect("its output"));
        out.read_line(&mut String::new()).expect("a line");
        readers.push((reader, out));
    }

    let grown = resident().saturating_sub(before);
    assert!(grown < 2 * READERS + 20, "{grown} MiB for {READERS} readers");
    drop(readers);
}

fn text(said: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
}

#[test]
fn a_server_is_reached_by_its_name_and_shown_its_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let (_server, address) = serve(at, "auth = true\n");
    let store = format!("sled:{}", at.join("store").display());
    let issue = ["token", "issue", "--store", &store, "--name", "ana", "--role", "viewer"];
    let token = said(&mut tow(at, &issue));
    fs::write(at.join("token"), &token.stdout).expect("a file");
    fs::set_permissions(at.join("token"), fs::Permissions::from_mode(0o600)).expect("a mode");
    let ends = |code: i32, command: &mut Command| {
        let output = said(command);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        text(&output)
    };

    let add = ["context", "add", "prod", "--server", &address, "--token-file", "token"];
    ends(0, &mut tow(at, &add));
    assert!(ends(6, &mut tow(at, &add)).contains("CONTEXT_EXISTS"));
    let listed = ends(0, &mut tow(at, &["list", "--context", "prod"]));
    assert!(listed.contains(&format!("context prod: {address}")), "{listed}");
    ends(0, tow(at, &["list"]).env("TOW_CONTEXT", "prod"));
    // Options take precedence over the environment, and the environment over the file.
    assert!(ends(3, &mut tow(at, &["list", "--context", "other"])).contains("CONTEXT_UNKNOWN"));
    ends(3, tow(at, &["list"]).env("TOW_CONTEXT", "other"));
    ends(0, tow(at, &["list", "--context", "prod"]).env("TOW_SERVER", "127.0.0.1:1"));
    ends(42, tow(at, &["list"]).env("TOW_SERVER", "127.0.0.1:1").env("TOW_CONTEXT", "prod"));
    ends(2, &mut tow(at, &["list", "--context", "prod", "--server", &address]));
    ends(40, tow(at, &["list", "--context", "prod"]).env("TOW_TOKEN", "towpath_wrong"));
    // A token goes to another machine over TLS only, from wherever it comes.
    for other in ["192.0.2.1:9", "[2001:db8::1]:9", "db.example:9"] {
        let mut list = tow(at, &["list", "--server", other]);
        let refused = ends(2, list.env("TOW_TOKEN", "towpath_secret"));
        assert!(refused.contains("error[INSECURE_CONNECT]"), "{refused}");
        let mut worker = tow(at, &["worker", "--name", "w", "--once", "--server", other]);
        let refused = ends(2, worker.env("TOW_TOKEN", "towpath_secret"));
        assert!(refused.contains("error[INSECURE_CONNECT]"), "{refused}");
    }
    // A server that is named by itself is not shown the token of a context.
    ends(40, &mut tow(at, &["list", "--server", &address]));

    let empty = tempfile::tempdir().expect("a folder");
    let away = |args: &[&str]| {
        let mut command = tow(empty.path(), args);
        command.env("HOME", at);
        command
    };
    let no_store = format!("sled:{}", empty.path().join("none").display());
    let here = |said: String| assert!(!said.contains("context prod"), "{said}");
    here(ends(0, &mut away(&["list"])));
    ends(0, &mut away(&["context", "use", "prod"]));
    ends(0, &mut away(&["list"]));
    assert!(ends(0, &mut away(&["context", "list"])).contains("* prod"));
    let shown = said(&mut away(&["context", "show", "--output", "json"]));
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!((&shown["server"], &shown["used"]), (&Value::from(address), &Value::from(true)));
    here(ends(0, away(&["list"]).env("TOW_CONTEXT", "")));
    here(ends(0, away(&["list"]).env("TOW_STORE", &no_store)));
    fs::set_permissions(at.join("token"), fs::Permissions::from_mode(0o644)).expect("a mode");
    assert!(ends(5, &mut away(&["list"])).contains("CONTEXT_TOKEN"));
    ends(0, &mut away(&["context", "remove", "prod"]));
    here(ends(0, &mut away(&["list"])));

    let file = at.join(".config/towpath/config.toml");
    fs::write(file, "[contexts.a]\nserver = \"a:1\"\ntoken = \"towpath_1\"\n").expect("a file");
    let refused = ends(5, &mut away(&["list"]));
    assert!(refused.contains("line 3") && !refused.contains("towpath_1"), "{refused}");
}

#[test]
fn what_needs_a_store_says_that_there_is_none_and_creates_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("sled:{}", folder.path().join("none").display());
    for command in [&["backup", "kept"][..], &["status"], &["token", "list"]] {
        let output = said(tow(folder.path(), command).args(["--store", &store]));
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("error[STORE_MISSING]: there is no store at"), "{command:?}: {said}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "nothing was created");
}

#[test]
fn a_refused_run_leaves_no_store_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = "stages: [s]\njobs:\n  a: {stage: s, command: 'true'}\n";
    fs::write(folder.path().join("towpath.yml"), file).expect("a file");
    let store = folder.path().join("store");
    let long = "k".repeat(200);
    for (code, refused) in [
        (2, &["run", "--parallelism", "0"][..]),
        (2, &["run", "--idempotency-key", &long]),
        (5, &["run", "--source", "remote"]),
        (0, &["run"]),
    ] {
        let mut command = tow(folder.path(), refused);
        let output = said(command.env("TOW_STORE", format!("sled:{}", store.display())));
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert_eq!(store.exists(), code == 0, "{refused:?}");
    }
}
