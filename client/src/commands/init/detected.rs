//! What a folder holds that a pipeline could begin with. Looks at names only, never into a
//! database.

use std::{collections::BTreeSet, fs, path::Path};

/// More SQL files than this become one job that goes through all of them.
pub(super) const SQL_FILES_MAX: usize = 100;
/// Longest Atlas configuration that is read, in bytes.
const ATLAS_BYTES_MAX: u64 = 1024 * 1024;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Detected {
    /// `alembic.ini` is there.
    pub(super) alembic: bool,
    /// `dbt_project.yml` is there.
    pub(super) dbt: bool,
    /// `packages.yml` is there, so dbt has something to fetch.
    pub(super) dbt_packages: bool,
    /// `sqlc.yaml` is there.
    pub(super) sqlc: bool,
    /// The first environment of `atlas.hcl`.
    pub(super) atlas_env: Option<String>,
    /// SQL files to apply, in order.
    pub(super) sql: Vec<SqlFile>,
    /// SQL files whose names no shell should see, or that are too many.
    pub(super) sql_left_out: usize,
    /// A SQLite database.
    pub(super) sqlite: Option<String>,
    /// Jobs for SQL are generated even if there are no files yet.
    pub(super) wants_sql: bool,
}

/// A file that changes a database, and the one that takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SqlFile {
    /// Its path from the folder.
    pub(super) path: String,
    /// The path of its undoing.
    pub(super) down: Option<String>,
}

impl Detected {
    /// What is in `folder`. What cannot be read is not there.
    pub(super) fn in_folder(folder: &Path) -> Self {
        // Names only: reading a configuration could run code of the tool that it belongs to.
        let has = |name: &str| folder.join(name).is_file();
        let (sql, sql_left_out) = sql_files(folder);
        Self {
            alembic: has("alembic.ini"),
            dbt: has("dbt_project.yml"),
            dbt_packages: has("packages.yml"),
            sqlc: has("sqlc.yaml") || has("sqlc.yml") || has("sqlc.json"),
            atlas_env: has("atlas.hcl").then(|| atlas_env(&folder.join("atlas.hcl"))),
            sql,
            sql_left_out,
            sqlite: names(folder).into_iter().find(|name| is_database(name)),
            wants_sql: false,
        }
    }

    /// Only what concerns SQL files.
    pub(super) fn only_sql(self) -> Self {
        let Self { sql, sql_left_out, sqlite, .. } = self;
        Self { sql, sql_left_out, sqlite, wants_sql: true, ..Self::default() }
    }

    /// What was found, as a person would list it.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (there, word) in [
            (self.alembic, "alembic.ini"),
            (self.dbt, "dbt_project.yml"),
            (self.sqlc, "an sqlc configuration"),
            (self.atlas_env.is_some(), "atlas.hcl"),
        ] {
            if there {
                words.push(word.to_owned());
            }
        }
        match self.sql.len() {
            0 => {}
            1 => words.push("1 SQL file".to_owned()),
            count => words.push(format!("{count} SQL files")),
        }
        words.extend(self.sqlite.clone());
        words
    }
}

/// Names in `folder` that a shell and a YAML file take as they are, sorted as migrations are.
fn names(folder: &Path) -> BTreeSet<String> {
    // An unreadable directory is like an empty one: `init` is a suggestion, not a check.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.path().is_file());
    names.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn is_plain(name: &str) -> bool {
    !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+@=,".contains(c))
}

fn is_database(name: &str) -> bool {
    let is_kind = [".db", ".sqlite", ".sqlite3"].iter().any(|kind| name.ends_with(kind));
    is_kind && is_plain(name) && !name.starts_with('.')
}

/// The SQL files in `migrations/`, or in `sql/` if there are none, and how many were omitted.
fn sql_files(folder: &Path) -> (Vec<SqlFile>, usize) {
    // The first directory that has files, not both: their order relative to each other is unknown.
    for place in ["migrations", "sql"] {
        let all = names(&folder.join(place));
        let (files, left_out) = paired(place, &all);
        if !files.is_empty() {
            return (files, left_out);
        }
    }
    (Vec::new(), 0)
}

/// Files to apply, each with its undoing: `1_x.up.sql` and `1_x.down.sql`, or `1_x.sql` alone.
fn paired(place: &str, names: &BTreeSet<String>) -> (Vec<SqlFile>, usize) {
    let is_up = |name: &&String| name.ends_with(".sql") && !name.ends_with(".down.sql");
    let (plain, odd): (Vec<&String>, Vec<&String>) =
        // A name with a quote or a space would need quoting in the generated shell command.
        names.iter().filter(is_up).partition(|name| is_plain(name));
    let file = |name: &String| {
        let stem = name.strip_suffix(".up.sql").or_else(|| name.strip_suffix(".sql"));
        let down = format!("{}.down.sql", stem.unwrap_or(name));
        let down = names.contains(&down).then(|| format!("{place}/{down}"));
        SqlFile { path: format!("{place}/{name}"), down }
    };
    (plain.into_iter().map(file).collect(), odd.len())
}

/// The first `env "NAME"` of an Atlas configuration.
fn atlas_env(path: &Path) -> String {
    // The file may be anything of that name; a large one is not read into memory.
    let is_small = fs::metadata(path).is_ok_and(|found| found.len() <= ATLAS_BYTES_MAX);
    let text = if is_small { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    let name = text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("env")?.trim_start().strip_prefix('"')?;
        rest.split('"').next().filter(|name| !name.is_empty() && is_plain(name))
    });
    // `local` is the name in the examples of Atlas.
    name.unwrap_or("local").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn tools_are_known_by_their_files() {
        let dir = folder(&[
            ("alembic.ini", ""),
            ("dbt_project.yml", ""),
            ("packages.yml", ""),
            ("sqlc.yaml", ""),
            ("atlas.hcl", "variable \"x\" {}\nenv \"prod\" {\n}\n"),
            ("shop.sqlite", ""),
        ]);
        let found = Detected::in_folder(dir.path());
        assert!(found.alembic && found.dbt && found.dbt_packages && found.sqlc);
        assert_eq!(found.atlas_env.as_deref(), Some("prod"));
        assert_eq!(found.sqlite.as_deref(), Some("shop.sqlite"));
        assert_eq!(
            found.words(),
            ["alembic.ini", "dbt_project.yml", "an sqlc configuration", "atlas.hcl", "shop.sqlite"]
        );
    }

    #[test]
    fn migrations_come_in_order_with_their_undoing() {
        let dir = folder(&[
            ("migrations/0002_b.up.sql", ""),
            ("migrations/0002_b.down.sql", ""),
            ("migrations/0001_a.sql", ""),
            ("migrations/it's $(odd).sql", ""),
            ("migrations/README.md", ""),
        ]);
        let found = Detected::in_folder(dir.path());
        let plain = SqlFile { path: "migrations/0001_a.sql".into(), down: None };
        let pair = SqlFile {
            path: "migrations/0002_b.up.sql".into(),
            down: Some("migrations/0002_b.down.sql".into()),
        };
        assert_eq!(found.sql, [plain, pair]);
        assert_eq!(found.sql_left_out, 1);
    }

    #[test]
    fn an_empty_folder_has_nothing() {
        assert_eq!(Detected::in_folder(folder(&[]).path()), Detected::default());
        assert_eq!(Detected::in_folder(Path::new("/nowhere/at/all")), Detected::default());
    }
}
