//! The program as a whole: what it prints, where it prints it, and what it ends with.
//!
//! Goldens are in `cli/`. `SNAPSHOTS=overwrite cargo test -p towpath --test cli` writes them again.

use serde_json::Value;
use snapbox::{assert_data_eq, file};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};
#[path = "cli/at.rs"]
mod at;
#[path = "cli/gates.rs"]
mod gates;

const SHOP: &str = include_str!("cli/shop.yml");
const UNDEFINED: &str = include_str!("cli/undefined.yml");
const TWO: &str = include_str!("cli/two.yml");
const RECORD: &str = include_str!("cli/record.jsonl");

/// An empty folder in which `tow` is called.
struct App {
    folder: tempfile::TempDir,
}

/// What one call came to.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl App {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let app = Self { folder };
        for (name, text) in files {
            app.write(name, text);
        }
        app
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).expect(name)
    }

    /// `tow` with nothing of the environment that could change what it says.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(snapbox::cmd::cargo_bin!("tow"));
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("USER", "ana")
            .env("TOW_STORE", format!("sled:{}", self.path().join(".towpath").display()))
            .env("COLUMNS", "80")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn tow(&self, args: &[&str]) -> Said {
        said(&mut self.command(args))
    }

    /// As [`App::tow`], which must end with `code`.
    fn ends(&self, code: i32, args: &[&str]) -> Said {
        let said = self.tow(args);
        assert_eq!(said.code, code, "{args:?}\n{}{}", said.out, said.err);
        said
    }

    fn json(&self, code: i32, args: &[&str]) -> Value {
        let said = self.ends(code, args);
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.out))
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.output().expect("tow starts");
    Said {
        code: output.status.code().expect("an exit code"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

#[test]
fn help_is_for_reading() {
    let app = App::with(&[]);

    // Help shows what variables are set to.
    let help = said(app.command(&["--help"]).env_remove("TOW_STORE"));
    assert_eq!(help.code, 0);
    assert_data_eq!(help.out, file!["cli/help.txt"].raw());
    assert_eq!(help.err, "");

    for command in ["init", "validate", "plan", "graph", "import", "export", "demo", "restore"] {
        let help = app.ends(0, &[command, "--help"]);
        assert!(help.out.contains(&format!("Usage: tow {command}")), "{}", help.out);
        assert!(help.out.lines().all(|line| line.chars().count() <= 100), "{}", help.out);
    }
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let app = App::with(&[]);
    for args in [&["no-such-thing"][..], &[], &["completions"], &["graph", "-f", "svg"]] {
        let said = app.ends(2, args);
        assert_eq!(said.out, "", "{args:?}");
        assert!(!said.err.is_empty(), "{args:?}");
    }
}

#[test]
fn a_good_file_is_one_line() {
    let app = App::with(&[("towpath.yml", SHOP), ("two.yml", TWO)]);

    assert_eq!(app.ends(0, &["validate"]).out, "towpath.yml: 7 jobs in 4 stages\n");
    let both = app.ends(0, &["validate", "two.yml", "towpath.yml"]);
    assert_eq!(both.out, "two.yml: 2 jobs in 1 stage\ntowpath.yml: 7 jobs in 4 stages\n");
    assert_eq!(both.err, "");
    assert!(!app.path().join(".towpath").exists(), "looking makes no store");
}

#[test]
fn every_problem_of_a_bad_file_is_located() {
    let app = App::with(&[("bad.yml", UNDEFINED), ("two.yml", TWO)]);

    let bad = app.ends(5, &["validate", "bad.yml"]);
    assert_eq!(bad.out, "");
    assert_data_eq!(bad.err, file!["cli/validate-undefined.txt"].raw());

    let mixed = app.ends(5, &["validate", "two.yml", "bad.yml"]);
    assert_eq!(mixed.out, "two.yml: 2 jobs in 1 stage\n");
    assert!(mixed.err.contains("bad.yml:12:29"), "{}", mixed.err);
}

#[test]
fn problems_are_json_for_programs() {
    let app = App::with(&[("bad.yml", UNDEFINED), ("two.yml", TWO)]);

    let bad = app.json(5, &["validate", "bad.yml", "--output", "json"]);
    assert_eq!((&bad["file"], &bad["valid"]), (&"bad.yml".into(), &false.into()));
    let need = &bad["problems"][0];
    assert_eq!(need["code"], "NEED_UNKNOWN");
    assert_eq!((&need["line"], &need["column"]), (&12.into(), &29.into()));

    let both = app.json(5, &["validate", "two.yml", "bad.yml", "--output", "json"]);
    assert_eq!(both["files"].as_array().map(Vec::len), Some(2));
    let lines = app.ends(5, &["validate", "two.yml", "bad.yml", "--output", "jsonl"]).out;
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).expect("a line of JSON");
    }
}

#[test]
fn a_dash_is_standard_input() {
    let app = App::with(&[]);
    let mut child = app.command(&["validate", "-"]).stdin(Stdio::piped()).spawn().expect("tow");
    child.stdin.take().expect("a pipe").write_all(TWO.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "<stdin>: 2 jobs in 1 stage\n");
}

#[test]
fn a_file_that_is_not_there_is_not_an_invalid_one() {
    let app = App::with(&[]);
    for args in [&["validate"][..], &["plan", "x.yml"], &["graph"], &["validate", "x.yml"]] {
        let said = app.ends(3, args);
        assert!(said.err.starts_with("error[FILE_UNREADABLE]: "), "{args:?}: {}", said.err);
    }
}

#[test]
fn colour_only_where_it_is_wanted() {
    let app = App::with(&[("bad.yml", UNDEFINED), ("towpath.yml", SHOP)]);
    let is_plain = |said: &Said| !said.out.contains('\u{1b}') && !said.err.contains('\u{1b}');

    assert!(is_plain(&app.tow(&["validate", "bad.yml"])));
    let forced = said(app.command(&["plan"]).env("CLICOLOR_FORCE", "1"));
    assert!(forced.out.contains("\u{1b}[1m"), "{}", forced.out);
    let refused = said(app.command(&["plan"]).env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1"));
    assert!(is_plain(&refused), "{}", refused.out);
    let ascii = app.ends(0, &["plan", "--ascii"]);
    assert!(ascii.out.is_ascii(), "{}", ascii.out);
}

#[test]
fn a_plan_fits_60_columns() {
    let app = App::with(&[("towpath.yml", SHOP)]);
    let plan = said(app.command(&["plan"]).env("COLUMNS", "60").env("SHOP_SECRET", "x"));
    assert_eq!(plan.code, 0, "{}", plan.err);
    assert_data_eq!(plan.out, file!["cli/plan.txt"].raw());
}

#[test]
fn a_plan_is_json_for_programs() {
    let app = App::with(&[("towpath.yml", SHOP)]);
    let plan = app.json(0, &["plan", "--output", "json"]);
    assert_eq!((&plan["jobs"], &plan["would_run"]), (&7.into(), &7.into()));
    assert_eq!(plan["gates"][0], "cutover");
    assert_eq!(plan["points_of_no_return"][0], "cutover");
    assert_eq!(plan["locks"][0]["limit"], 2);
    assert_eq!(plan["critical_path"]["total_ms"], Value::Null);
    assert_eq!(plan["secrets"][1]["set"], false);
}

#[test]
fn a_pipeline_is_drawn_four_ways() {
    let app = App::with(&[("towpath.yml", SHOP)]);
    assert_data_eq!(app.ends(0, &["graph"]).out, file!["cli/graph.txt"].raw());
    assert_data_eq!(app.ends(0, &["graph", "-f", "dot"]).out, file!["cli/graph.dot"].raw());
    let mermaid = app.ends(0, &["graph", "--format", "mermaid"]).out;
    assert_data_eq!(mermaid, file!["cli/graph.mmd"].raw());
    let json = app.json(0, &["graph", "--format", "json"]);
    assert_eq!(json["waves"][1]["jobs"][1], "products");
    assert_eq!(json, app.json(0, &["graph", "--output", "json"]));
}

#[test]
fn a_schema_is_printed_that_editors_take() {
    let app = App::with(&[]);
    let schema = app.json(0, &["schema"]);
    assert!(schema["$schema"].as_str().is_some_and(|at| at.contains("json-schema.org")));
    assert!(schema["properties"]["jobs"].is_object());
}

#[test]
fn a_first_file_is_written_once() {
    let app = App::with(&[]);

    let first = app.ends(0, &["init"]);
    assert_data_eq!(app.read("towpath.yml"), file!["cli/init-empty.yml"].raw());
    assert!(first.out.starts_with("Wrote towpath.yml: 3 jobs in 3 stages.\n"), "{}", first.out);

    let again = app.ends(6, &["init", "--template", "dbt"]);
    assert!(again.err.starts_with("error[FILE_EXISTS]: "), "{}", again.err);
    assert_data_eq!(app.read("towpath.yml"), file!["cli/init-empty.yml"].raw());
}

#[test]
fn a_first_file_fits_what_is_there() {
    let cases: [(&[&str], &str); 6] = [
        (&["alembic.ini"], "alembic upgrade head"),
        (&["dbt_project.yml"], "dbt build"),
        (&["sqlc.yaml"], "sqlc diff"),
        (&["atlas.hcl"], "atlas migrate apply --env local"),
        (&["migrations/0001_a.sql", "migrations/0002_b.sql"], "-f migrations/0002_b.sql"),
        (&["shop.sqlite", "migrations/1.sql"], "sqlite3 -bail shop.sqlite < migrations/1.sql"),
    ];
    for (files, command) in cases {
        let files: Vec<(&str, &str)> = files.iter().map(|file| (*file, "")).collect();
        let app = App::with(&files);
        app.ends(0, &["init"]);
        let text = app.read("towpath.yml");
        assert!(text.contains(command), "{text}");
        let valid = app.ends(0, &["validate"]);
        assert!(valid.err.is_empty() && !valid.out.contains("warning"), "{}", valid.err);
    }
}

#[test]
fn the_first_file_runs_unchanged() {
    let app = App::with(&[]);
    app.ends(0, &["init", "--template", "empty"]);
    app.ends(12, &["run"]);
    assert_eq!(app.json(12, &["status", "--output", "json"])["counts"]["succeeded"], 2);
    let rest = app.json(0, &["plan", "--resume", "@latest", "--output", "json"]);
    assert_eq!((&rest["would_run"], &rest["gates"][0]), (&1.into(), &"cutover".into()));
}

#[test]
fn a_record_comes_in_and_goes_out_again() {
    let app = App::with(&[("towpath.yml", TWO), ("old.jsonl", RECORD)]);
    app.write("torn.jsonl", &format!("{RECORD}{{\"pipeline_run_id\":\"abc"));

    let torn = app.ends(0, &["import", "torn.jsonl"]);
    assert!(torn.err.contains("line 6 of the record is truncated"), "{}", torn.err);
    let imported = app.json(0, &["import", "old.jsonl", "--output", "json"]);
    assert_eq!((&imported["succeeded"], &imported["failed"]), (&1.into(), &1.into()));
    assert_eq!(imported["recorded_run"], "abc123");

    app.ends(0, &["export", "-o", "new.jsonl"]);
    let without_id = |text: &str| -> Vec<Value> {
        let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let mut values: Vec<Value> = values.map(|value| value.expect("JSON")).collect();
        for value in &mut values {
            value["pipeline_run_id"] = "".into();
            for at in ["started_at", "finished_at"] {
                if let Some(moment) = value[at].as_str().map(|text| text.replace(".000", "")) {
                    value[at] = moment.into();
                } else if let Some(fields) = value.as_object_mut() {
                    fields.remove(at);
                }
            }
        }
        values
    };
    assert_eq!(without_id(&app.read("new.jsonl")), without_id(RECORD));
    let again = app.json(0, &["import", "new.jsonl", "--output", "json"]);
    assert_eq!(again["succeeded"], 1);
}

#[test]
fn an_imported_run_continues_and_is_planned() {
    let app = App::with(&[("towpath.yml", TWO), ("old.jsonl", RECORD)]);
    app.ends(0, &["import", "old.jsonl"]);

    let rest = app.json(0, &["plan", "--resume", "@latest", "--output", "json"]);
    assert_eq!(rest["resume"]["kept"][0], "customers");
    assert_eq!(rest["resume"]["plan_changed"], false);
    app.ends(0, &["resume"]);
    let none = app.ends(4, &["plan", "--resume", "@latest"]);
    assert!(none.out.contains("nothing to resume in run"), "{}", none.out);
    let exported = app.ends(0, &["export"]).out;
    assert_eq!(exported.lines().filter(|line| line.contains("\"DONE\"")).count(), 2);

    app.write("towpath.yml", &format!("{TWO}  more:\n    stage: migrate\n    command: 'true'\n"));
    let more = app.ends(0, &["plan", "--resume", "@latest"]);
    assert!(more.out.contains("CHANGED since the run began"), "{}", more.out);
    let next = app.json(0, &["plan", "--output", "json"]);
    assert!(next["critical_path"]["estimated_from"].is_string(), "{next}");
}

#[test]
fn a_record_that_is_damaged_is_refused_whole() {
    let app = App::with(&[("towpath.yml", TWO), ("odd.jsonl", &RECORD.replace("DONE", "OK"))]);
    app.write("other.jsonl", &RECORD.replace("\"orders\"", "\"elsewhere\""));
    let odd = app.ends(5, &["import", "odd.jsonl"]);
    assert!(odd.err.starts_with("error[IMPORT_INVALID]: "), "{}", odd.err);
    let other = app.ends(5, &["import", "other.jsonl"]);
    assert!(other.err.starts_with("error[IMPORT_MISMATCH]: "), "{}", other.err);
    assert_eq!(app.ends(3, &["import", "none.jsonl"]).out, "");
    assert!(!app.path().join(".towpath").exists(), "a refused record leaves no store");
    assert_eq!(app.json(0, &["list", "--output", "json"]), Value::Array(Vec::new()));
}

#[test]
fn a_store_without_damage_passes_the_doctor() {
    let app = App::with(&[("towpath.yml", TWO)]);
    let none = app.ends(3, &["doctor"]);
    assert!(none.out.contains("sh answers"), "{}", none.out);

    app.ends(0, &["run"]);
    let fine = app.json(0, &["doctor", "--output", "json"]);
    assert_eq!((&fine["ok"], &fine["runs"]), (&true.into(), &1.into()));
    assert!(app.ends(0, &["doctor"]).out.contains("every hash, view and blob agrees"));

    let store = app.path().join(".towpath");
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).expect("a mode");
    assert!(app.ends(0, &["doctor"]).out.contains("is open to others (mode 0755)"));
}

#[test]
fn a_blob_that_is_not_what_was_written_is_found() {
    let app = App::with(&[("towpath.yml", TWO)]);
    app.ends(0, &["run"]);
    let job = &app.json(0, &["status", "--output", "json"])["jobs"][0];
    let sha256 = job["captured_output"]["sha256"].as_str().expect("a log").to_owned();
    let blob = files_below(&app.path().join(".towpath/blobs"))
        .into_iter()
        .find(|path| path.to_string_lossy().replace('/', "").ends_with(&sha256))
        .expect("the blob");
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::write(&blob, "something else").expect("written");

    let said = app.ends(7, &["doctor"]);
    assert!(said.out.contains(&sha256) || said.out.contains("is damaged"), "{}", said.out);
    assert_eq!(app.json(7, &["doctor", "--output", "json"])["ok"], false);
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(files_below(&path)),
            path => files.push(path),
        }
    }
    files
}

#[test]
fn a_store_comes_back_from_its_backup() {
    let app = App::with(&[("towpath.yml", TWO)]);
    app.ends(3, &["backup", "kept"]);
    app.ends(0, &["run"]);

    let kept = app.json(0, &["backup", "kept", "--output", "json"]);
    assert!(kept["records"].as_u64() > Some(0) && kept["blobs"] == 2, "{kept}");
    let again = app.ends(6, &["backup", "kept"]);
    assert!(again.err.starts_with("error[BACKUP_EXISTS]: "), "{}", again.err);
    let full = app.ends(6, &["restore", "kept"]);
    assert!(full.err.starts_with("error[RESTORE_TARGET_NOT_EMPTY]: "), "{}", full.err);

    for url in ["sled:there", "fjall:elsewhere"] {
        let back = app.json(0, &["restore", "kept", "--to", url, "--output", "json"]);
        assert_eq!(back["hash"], kept["hash"]);
        assert_eq!(
            app.json(0, &["doctor", "--store", url, "--output", "json"])["hash"],
            kept["hash"]
        );
        assert_eq!(app.ends(0, &["logs", "orders", "--store", url]).out, "moved orders\n");
    }
}

#[test]
fn a_backup_with_one_flipped_bit_is_refused() {
    let app = App::with(&[("towpath.yml", TWO)]);
    app.ends(0, &["run"]);
    app.ends(0, &["backup", "kept"]);
    let path = app.path().join("kept");
    let bytes = fs::read(&path).expect("the backup");
    for at in [0, 20, bytes.len() / 2, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        fs::write(&path, flipped).expect("written");
        let said = app.ends(7, &["restore", "kept", "--to", "sled:there"]);
        assert!(said.err.starts_with("error[BACKUP_DAMAGED]: "), "{at}: {}", said.err);
        assert!(!app.path().join("there").exists(), "{at}");
    }
    assert_eq!(app.ends(3, &["restore", "none", "--to", "sled:there"]).out, "");
}

#[test]
fn every_shell_gets_completions() {
    let app = App::with(&[]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = app.ends(0, &["completions", shell]).out;
        for word in ["validate", "resume", "--accept-changes"] {
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn versions_of_both_ends_are_shown() {
    let app = App::with(&[("towpath.yml", TWO)]);
    let version = format!("tow {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(app.ends(0, &["--version"]).out, version);
    assert!(app.ends(0, &["version"]).out.starts_with(&version));
    let alone = app.json(0, &["version", "--output", "json"]);
    assert_eq!((&alone["server"], &alone["features"][0]), (&Value::Null, &"server".into()));
    app.ends(0, &["run"]);
    let both = app.json(0, &["version", "--output", "json"]);
    assert_eq!(both["server"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(both["server"]["position"].as_u64() > Some(0), "{both}");
}

#[test]
fn notes_are_json_for_programs() {
    let app = App::with(&[("towpath.yml", TWO)]);
    let mut command = app.command(&["run", "--detach"]);
    let said = said(command.env("TOW_LOG", "debug").env("TOW_LOG_FORMAT", "json"));
    let notes = said.err.lines().filter(|line| line.contains("run_created"));
    let notes: Vec<Value> = notes.map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(notes[0]["fields"]["kind"], "run_created", "{}", said.err);
}

#[test]
fn the_demo_is_killed_and_nothing_runs_twice() {
    let app = App::with(&[]);
    let demo = said(app.command(&["demo"]).env("TMPDIR", app.path()));
    assert_eq!(demo.code, 0, "{}{}", demo.out, demo.err);
    assert!(demo.out.contains("Killed: `tow` got SIGKILL"), "{}", demo.out);
    assert!(demo.out.contains("11 of 11 jobs did their work, each exactly once"), "{}", demo.out);
    let left = fs::read_dir(app.path()).expect("a folder").count();
    assert_eq!(left, 0, "nothing is left behind");
}

#[test]
fn the_demo_can_stay_at_its_gate() {
    let app = App::with(&[]);
    let demo = said(app.command(&["demo", "--no-approve", "--keep"]).env("TMPDIR", app.path()));
    assert_eq!(demo.code, 0, "{}{}", demo.out, demo.err);
    assert!(demo.out.contains("10 of 11 jobs did their work, each exactly once"), "{}", demo.out);
    let folder = fs::read_dir(app.path()).expect("a folder").flatten().next().expect("kept");
    let store = format!("sled:{}", folder.path().join(".towpath").display());
    app.ends(12, &["status", "--store", &store]);
    assert!(!folder.path().join("live").exists());
}
