//! A server whose disk fills up: a real `tow` on a small disk of its own.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use towpath_storage::{DiskSpace, FREE_BYTES_MIN};
use towpath_tests::{program, skip};

/// How long anything may take before the story says that it never came.
const WAIT_MAX: Duration = Duration::from_secs(60);

const PIPELINE: &str = r#"version: "1.0"
stages: [s]
jobs:
  first:
    stage: s
    command: touch begun; while [ ! -e go ]; do sleep 0.05; done; echo first >> effects; echo printed
  second: {stage: s, needs: [first], command: echo second >> effects}
"#;

/// A process that ends with its owner.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Scene {
    folder: tempfile::TempDir,
    server: String,
    /// The store's folder and its disk, the one as the server sees it, the other as we do.
    store: PathBuf,
    disk: PathBuf,
    serving: Ends,
}

impl Scene {
    /// Serves a store on a disk of 160 MiB that nobody else sees. `None` where that is forbidden.
    fn begin() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = folder.path().join("disk");
        fs::create_dir(&disk).expect("a folder");
        fs::write(folder.path().join("towpath.yml"), PIPELINE).expect("a file");
        let script = r#"mount -t tmpfs -o size=160m tmpfs "$1" && exec "$2" serve --listen 127.0.0.1:0 --store "sled:$1/store" --output jsonl"#;
        let serving = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([&disk, &program()])
            .env_remove("TOW_STORE")
            .stdout(Stdio::piped())
            .spawn();
        let mut serving = Ends(serving.ok()?);
        let mut line = String::new();
        let said = serving.0.stdout.take().expect("a pipe");
        BufReader::new(said).read_line(&mut line).expect("it can be heard");
        let address: serde_json::Value = serde_json::from_str(&line).ok()?;
        let server = address["address"].as_str().expect("an address").to_owned();
        let store = disk.join("store");
        let root = Path::new("/proc").join(serving.0.id().to_string()).join("root");
        let disk = root.join(disk.strip_prefix("/").expect("an absolute path"));
        Some(Self { folder, server, store, disk, serving })
    }

    fn tow(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .args(["--server", &self.server])
            .current_dir(self.folder.path())
            .env_remove("TOW_STORE")
            .stdin(Stdio::null());
        command
    }

    fn says(&self, arguments: &[&str]) -> Output {
        self.tow(arguments).output().expect("`tow` can be started")
    }

    fn is_refused(&self, arguments: &[&str]) {
        let refused = self.says(arguments);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(8), "{said}");
        assert!(said.contains("error[STORE_FULL]"), "{said}");
    }

    fn there(&self, name: &str) -> bool {
        self.folder.path().join(name).exists()
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < WAIT_MAX, "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_disk_refuses_new_work_and_loses_nothing() {
    let Some(scene) = Scene::begin() else {
        return skip("mount", "this machine does not let us mount a small disk");
    };
    let attempts = scene.folder.path().join("worker").display().to_string();
    let worker = ["worker", "--name", "w", "--slots", "2", "--attempts", &attempts];
    let _worker = Ends(scene.tow(&worker).spawn().expect("a worker"));
    let running = scene
        .tow(&["run", "--source", "folder", "--output", "jsonl"])
        .stdout(Stdio::null())
        .spawn();
    let mut running = Ends(running.expect("a client"));
    until("the first job", || scene.there("begun"));

    let space = DiskSpace::of(&scene.disk);
    let filler = scene.disk.join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    let mut fill_until_less_than = |more| {
        while space.check(more).is_ok() {
            file.write_all(&[7; 256 * 1024]).expect("there is room for this");
        }
    };
    fill_until_less_than(FREE_BYTES_MIN / 2);
    assert_eq!(space.check(0), Ok(()), "what has begun may end");
    scene.is_refused(&["run", "--source", "folder"]);
    fill_until_less_than(0);
    fs::write(scene.folder.path().join("go"), "").expect("a file");
    until("the effect", || scene.there("effects"));
    scene.is_refused(&["cancel", "@latest"]);
    let status = scene.says(&["status", "--output", "json"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("\"running\""), "what is there can be read: {status}");
    assert_eq!(running.0.try_wait().expect("a child can be asked"), None);

    drop(file);
    fs::remove_file(&filler).expect("the filler can go");

    until("the end", || running.0.try_wait().is_ok_and(|status| status.is_some()));
    assert_eq!(running.0.wait().expect("it has ended").code(), Some(0));
    let effects = fs::read_to_string(scene.folder.path().join("effects")).expect("effects");
    assert_eq!(effects, "first\nsecond\n");
    let logs = scene.says(&["logs", "first"]);
    assert_eq!(String::from_utf8_lossy(&logs.stdout).trim(), "printed");
    assert_eq!(
        scene.says(&["run", "--source", "folder"]).status.code(),
        Some(0),
        "new work is taken again"
    );
    let pid = scene.serving.0.id().to_string();
    let doctor = Command::new("nsenter")
        .args(["--mount", "--target", &pid])
        .args([program(), "doctor".into(), "--store".into(), scene.store])
        .status();
    assert!(doctor.expect("`tow` can be started").success());
}

/// `tow list` opens a store whose disk has no room, before and after there is room again. $1 is an
/// empty folder, $2 is `tow`.
const FILLED_WHILE_CLOSED: &str = r#"
mount -t tmpfs -o size=160m tmpfs "$1" || exit 99
cd "$1"
printf 'stages: [s]\njobs: {first: {stage: s, command: "true"}}\n' > towpath.yml
"$2" run --store sled:store
echo "run $?"
dd if=/dev/zero of=filler bs=64k
"$2" list --store sled:store
echo "full $?"
rm filler
"$2" list --store sled:store
echo "room $?"
"$2" doctor --store sled:store
echo "doctor $?"
"#;

#[test]
fn a_store_that_is_opened_on_a_full_disk_opens_again_once_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let tried = Command::new("unshare")
        .args(["--mount", "sh", "-c", FILLED_WHILE_CLOSED, "sh"])
        .args([folder.path(), &program()])
        .env_remove("TOW_STORE")
        .stdin(Stdio::null())
        .output();
    let Some(tried) = tried.ok().filter(|tried| tried.status.code() == Some(0)) else {
        return skip("mount", "this machine does not let us mount a small disk");
    };

    let (out, err) =
        (String::from_utf8_lossy(&tried.stdout), String::from_utf8_lossy(&tried.stderr));
    for line in ["run 0", "full 8", "room 0", "doctor 0"] {
        assert!(out.lines().any(|said| said == line), "{line}: {out}{err}");
    }
    assert!(err.contains("error[STORE_FULL]"), "{err}");
}

/// A worker whose own disk is full from the start. $1 is an empty folder, $2 is `tow`, $3 the server.
const FULL_WORKER: &str = r#"
mount -t tmpfs -o size=24m tmpfs "$1" || exit 99
dd if=/dev/zero of="$1/filler" bs=64k 2>/dev/null
exec "$2" worker --server "$3" --name w --attempts "$1/attempts"
"#;

#[test]
fn a_worker_whose_disk_is_full_loses_one_attempt_and_pauses_until_there_is_space() {
    let Some(scene) = Scene::begin() else {
        return skip("mount", "this machine does not let us mount a small disk");
    };
    let own = scene.folder.path().join("own");
    fs::create_dir(&own).expect("a folder");
    fs::write(scene.folder.path().join("go"), "").expect("a file");
    let worker = Command::new("unshare")
        .args(["--mount", "sh", "-c", FULL_WORKER, "sh"])
        .args([&own, &program()])
        .arg(&scene.server)
        .env_remove("TOW_STORE")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut worker = Ends(worker.expect("a worker"));
    let begun = scene.says(&["run", "--source", "folder", "--detach"]);
    assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
    let events = || {
        let said = scene.says(&["events", "@latest", "--output", "jsonl"]);
        String::from_utf8_lossy(&said.stdout).into_owned()
    };

    until("the loss", || events().contains("job_lost"));
    let lost = events();
    assert!(lost.contains("its worker cannot write its own files: No space left"), "{lost}");
    let workers = || {
        let said = scene.says(&["workers", "list", "--output", "json"]);
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    assert!(workers().contains("\"state\": \"draining\""), "{}", workers());
    let root = Path::new("/proc").join(worker.0.id().to_string()).join("root");
    let filler = own.join("filler");
    let filler = root.join(filler.strip_prefix("/").expect("an absolute path"));
    fs::remove_file(filler).expect("the filler can go");

    until("the end", || events().contains("run_finished"));
    let all = events();
    assert_eq!(all.matches("its worker cannot write").count(), 1, "{all}");
    assert!(!all.contains("job_attempt_failed") && !all.contains("job_failed"), "{all}");
    let effects = fs::read_to_string(scene.folder.path().join("effects")).expect("effects");
    assert_eq!(effects, "first\nsecond\n");
    worker.0.kill().expect("it runs");
    let mut said = String::new();
    let stderr = worker.0.stderr.take().expect("its stderr");
    BufReader::new(stderr).read_to_string(&mut said).expect("text");
    assert_eq!(said.matches("w takes no jobs until").count(), 1, "{said}");
}

/// `tow run` whose disk loses its space while the first job runs. $1 is an empty folder, $2 is `tow`.
const FILLED_WHILE_RUNNING: &str = r#"
mount -t tmpfs -o size=160m tmpfs "$1" || exit 99
cd "$1"
cat > towpath.yml <<'END'
stages: [s]
jobs:
  first: {stage: s, command: 'touch begun; until [ -e go ]; do sleep 0.05; done'}
  second: {stage: s, needs: [first], command: 'true'}
END
"$2" run --store sled:store > out 2> err &
run=$!
tries=0
until [ -e begun ] || [ $((tries += 1)) -gt 600 ]; do sleep 0.1; done
# 48 MiB are left: enough for what has begun to end, and too little for a new job.
free=$(df -k . | awk 'END { print $4 }')
dd if=/dev/zero of=filler bs=1k count=$((free - 49152)) 2>/dev/null
touch go
tries=0
until grep -q Waiting err || [ $((tries += 1)) -gt 600 ]; do sleep 0.1; done
kill -0 $run && echo "it goes on"
rm filler
wait $run
echo "run $?"
cat err
"#;

#[test]
fn a_run_that_begins_no_job_for_want_of_space_says_so_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let tried = Command::new("unshare")
        .args(["--mount", "sh", "-c", FILLED_WHILE_RUNNING, "sh"])
        .args([folder.path(), &program()])
        .env_remove("TOW_STORE")
        .stdin(Stdio::null())
        .output();
    let Some(tried) = tried.ok().filter(|tried| tried.status.code() == Some(0)) else {
        return skip("mount", "this machine does not let us mount a small disk");
    };

    let out = String::from_utf8_lossy(&tried.stdout);
    let said = "Waiting: `second` is ready, but the store takes no leases now: ";
    assert_eq!(out.matches(said).count(), 1, "{out}");
    assert!(out.contains("bytes are free on the disk of the store"), "{out}");
    assert!(out.contains("it goes on") && out.contains("run 0"), "{out}");
}
