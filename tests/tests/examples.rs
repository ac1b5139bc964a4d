//! The pipelines of `examples/`, run without changes, by the program, with real databases.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;
use towpath_tests::{program, root, skip};

/// A copy of one example, and what it needs beside it.
fn copy_of(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in names {
        copy(&root().join("examples").join(name), &folder.path().join(name));
    }
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("an example") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        let kind = entry.file_type().expect("a kind");
        let own = entry.file_name();
        if own == ".towpath" || own == "work" || own == "__pycache__" {
            continue;
        }
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file is copied");
        }
    }
}

struct Example {
    folder: PathBuf,
    env: Vec<(&'static str, String)>,
}

impl Example {
    fn at(folder: &TempDir, name: &str) -> Self {
        Self { folder: folder.path().join(name), env: Vec::new() }
    }

    fn tow(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(&self.folder)
            .env_remove("TOW_STORE")
            .env_remove("TOW_SERVER");
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command.output().expect("tow runs")
    }

    fn ends_with(&self, args: &[&str], code: i32) -> String {
        let output = self.tow(args);
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}\n{out}\n{err}");
        out.into_owned()
    }

    /// Runs to the gate, opens it, and runs to the end.
    fn runs_through_its_gate(&self, file: &str) {
        self.ends_with(&["run", file], 12);
        self.ends_with(&["approve", "--comment", "read the counts"], 0);
        self.ends_with(&["resume"], 0);
        self.ends_with(&["doctor"], 0);
        assert!(self.ends_with(&["status"], 0).contains("succeeded"));
    }
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_smallest_file_runs() {
    let folder = copy_of(&["hello"]);
    Example::at(&folder, "hello").runs_through_its_gate("towpath.yml");
}

#[test]
fn every_key_of_the_file_does_something() {
    let folder = copy_of(&["features"]);
    let example = Example::at(&folder, "features");

    example.runs_through_its_gate("towpath.yml");

    let events = example.ends_with(&["events"], 0);
    for kind in ["job_attempt_failed", "condition_evaluated", "job_skipped", "gate_approved"] {
        assert!(events.contains(kind), "{kind}");
    }
}

#[test]
fn a_file_of_the_format_that_came_before_runs() {
    let folder = copy_of(&["pulsaride"]);
    Example::at(&folder, "pulsaride").ends_with(&["run", "--yes"], 0);
}

#[test]
fn a_shop_moves_from_sqlite_to_sqlite() {
    if !has("python3") {
        return skip("python3", "there is no python3");
    }
    let folder = copy_of(&["shop-sqlite"]);
    let example = Example::at(&folder, "shop-sqlite");

    example.runs_through_its_gate("towpath.yml");

    let status = example.ends_with(&["status", "--output", "json"], 0);
    assert!(status.contains("\"rows\": \"94852\""), "{status}");
}

/// A PostgreSQL server of this test's own, ended with it.
struct Postgres {
    folder: TempDir,
    bin: PathBuf,
    port: u16,
}

impl Postgres {
    /// `None` where no server is installed.
    fn start() -> Option<Self> {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let bin = versions
            .filter_map(Result::ok)
            .map(|version| version.path().join("bin"))
            .find(|bin| bin.join("initdb").exists())?;
        let folder = tempfile::tempdir().expect("a folder");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        drop(taken);
        let server = Self { folder, bin, port };
        server.allow();
        server.run("initdb", &["-A", "trust", "-U", "postgres", "-D"]);
        let options = format!(
            "-p {port} -k {} -c listen_addresses=127.0.0.1 -c fsync=off",
            server.folder.path().display()
        );
        let log = server.folder.path().join("log");
        let log = log.to_string_lossy();
        server.run("pg_ctl", &["-w", "-o", &options, "-l", &log, "start", "-D"]);
        Some(server)
    }

    /// The server refuses to run as root: then its files belong to the user made for it.
    fn allow(&self) {
        if is_root() {
            let done = Command::new("chown").arg("postgres").arg(self.folder.path()).status();
            assert!(done.expect("chown runs").success());
        }
    }

    /// Runs a program of the server on its data folder.
    fn run(&self, program: &str, args: &[&str]) {
        let path = self.bin.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        let data = self.folder.path().join("data");
        let output = command.args(args).arg(data).current_dir("/").output().expect("it runs");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn sql(&self, text: &str) {
        let output = Command::new(self.bin.join("psql"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-p"])
            .args([&self.port.to_string(), "-c", text])
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.run("pg_ctl", &["-m", "immediate", "stop", "-D"]);
    }
}

fn is_root() -> bool {
    let me = Command::new("id").arg("-u").output();
    me.is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

#[test]
fn a_shop_moves_to_postgresql_and_its_password_stays_secret() {
    let Some(server) = Postgres::start().filter(|_| has("python3") && has("psql")) else {
        return skip("postgres", "there is no PostgreSQL server, psql or python3");
    };
    server.sql("create role shop login password 'geheim-77'");
    server.sql("create database shop owner shop");
    let folder = copy_of(&["shop-postgres", "shop-sqlite"]);
    let mut example = Example::at(&folder, "shop-postgres");
    example.env.push(("PGPASSWORD", "geheim-77".to_owned()));
    let file = example.folder.join("towpath.yml");
    let text = fs::read_to_string(&file).expect("the example");
    let own = format!("PGPORT: \"{}\"", server.port);
    assert!(text.contains("PGPORT: \"5432\""));
    fs::write(&file, text.replace("PGPORT: \"5432\"", &own)).expect("the example is written");

    example.runs_through_its_gate("towpath.yml");

    assert!(!kept(&example.folder.join(".towpath"), b"geheim-77"), "the password was stored");
}

/// Whether any file below `folder` holds `needle`.
fn kept(folder: &Path, needle: &[u8]) -> bool {
    fs::read_dir(folder).expect("a folder").filter_map(Result::ok).any(|entry| {
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            return kept(&entry.path(), needle);
        }
        kind.is_file()
            && fs::read(entry.path())
                .is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    })
}
