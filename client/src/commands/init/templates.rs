//! A first pipeline file, put together from what was found. Every text that can come out of here
//! must pass our own parser without a warning.

use super::detected::{Detected, SQL_FILES_MAX, SqlFile};

const HEAD: &str = "\
# What runs, in what order, and where a person has to say yes.
#
#   tow validate    check this file
#   tow plan        see what would run
#   tow run         run it
#
# Editors can complete and check it: run `tow schema > towpath.schema.json`, and put this in the
# first line:  # yaml-language-server: $schema=towpath.schema.json
version: \"1.0\"
";

const EMPTY: &str = "
# Stages are barriers: nothing of a stage starts before everything in the stage above has ended.
stages: [check, migrate, cutover]

jobs:
  # A job is shell text. It succeeds when it ends with exit code 0.
  check-room:
    stage: check
    command: df -P .
    on_failure: abort             # the default is `continue`: only what needs the job is skipped

  # `needs` are the jobs that must have succeeded first.
  migrate:
    stage: migrate
    command: echo \"put the first real command here\"
    needs: [check-room]
    # retry: 2                    # try again when it fails
    # timeout: 10m
    # secrets: [DATABASE_URL]     # taken from your environment, masked in all output

  # A gate: the run stops here until a person runs `tow approve cutover`.
  cutover:
    stage: cutover
    command: echo \"the new database is live\"
    needs: [migrate]
    when: manual
";

/// One job, as in the file.
struct Job {
    name: String,
    stage: &'static str,
    /// Lines above it, without `#`.
    comment: Vec<String>,
    /// Lines after `stage:`, without indent.
    lines: Vec<String>,
}

impl Job {
    fn new(name: &str, stage: &'static str, comment: &str, lines: &[&str]) -> Self {
        let comment = comment.lines().map(str::to_owned).collect();
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        Self { name: name.to_owned(), stage, comment, lines }
    }

    fn needs(mut self, need: Option<&str>) -> Self {
        self.lines.extend(need.map(|need| format!("needs: [{need}]")));
        self
    }
}

/// The file for what was found.
pub(super) fn text(found: &Detected) -> String {
    let mut jobs = Vec::new();
    if found.sqlc {
        jobs.push(sqlc());
    }
    if found.alembic {
        jobs.extend(alembic());
    }
    if let Some(env) = &found.atlas_env {
        jobs.extend(atlas(env));
    }
    // The other tools apply their own files.
    if !found.alembic && found.atlas_env.is_none() {
        jobs.extend(sql(found));
    }
    if found.dbt {
        jobs.extend(dbt(found.dbt_packages));
    }
    if jobs.is_empty() {
        return format!("{HEAD}{EMPTY}");
    }
    let used = ["check", "migrate", "build", "validate"];
    let used = used.into_iter().filter(|stage| jobs.iter().any(|job| job.stage == *stage));
    let stages = used.collect::<Vec<_>>().join(", ");
    let mut text = format!(
        "{HEAD}
# Nothing of a stage starts before everything in the stage above has ended.
stages: [{stages}]

# A job gets PATH, HOME and LANG of your environment, what `env` says, and the variables that it
# names in `secrets`. Their values are masked in all output.
jobs:
"
    );
    for (at, job) in jobs.iter().enumerate() {
        if at > 0 {
            text.push('\n');
        }
        for line in &job.comment {
            text.push_str(&format!("  # {line}\n"));
        }
        text.push_str(&format!("  {}:\n    stage: {}\n", job.name, job.stage));
        for line in &job.lines {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

fn sqlc() -> Job {
    let comment = "Fails when the generated code is not what the schema and the queries say.";
    Job::new("sqlc-diff", "check", comment, &["command: sqlc diff", "on_failure: abort"])
}

fn alembic() -> Vec<Job> {
    vec![
        Job::new(
            "alembic-heads",
            "check",
            "Two heads are two histories: merge them before anything is migrated.",
            &["command: test \"$(alembic heads | wc -l)\" -eq 1", "on_failure: abort"],
        ),
        Job::new(
            "alembic-upgrade",
            "migrate",
            "If env.py reads the address of the database from the environment, name the variable.",
            &[
                "command: alembic upgrade head",
                "# secrets: [DATABASE_URL]",
                "# when: manual                # let a person say yes first: `tow approve`",
                "resource: database            # never two of these at once, over all runs",
                "undo: alembic downgrade -1",
            ],
        )
        .needs(Some("alembic-heads")),
        Job::new(
            "alembic-check",
            "validate",
            "Fails when the models have changes that no migration holds.",
            &["command: alembic check"],
        )
        .needs(Some("alembic-upgrade")),
    ]
}

fn atlas(env: &str) -> Vec<Job> {
    let command = |verb: &str| format!("command: atlas migrate {verb} --env {env}");
    vec![
        Job::new(
            "atlas-validate",
            "check",
            "Fails when a migration was edited after its checksum was taken.",
            &[&command("validate"), "on_failure: abort"],
        ),
        Job::new(
            "atlas-apply",
            "migrate",
            "If atlas.hcl reads the address of the database from the environment, name the variable.",
            &[
                &command("apply"),
                "# secrets: [DATABASE_URL]",
                "# when: manual                # let a person say yes first: `tow approve`",
                "resource: database            # never two of these at once, over all runs",
            ],
        )
        .needs(Some("atlas-validate")),
        Job::new("atlas-status", "validate", "", &[&command("status")]).needs(Some("atlas-apply")),
    ]
}

fn dbt(has_packages: bool) -> Vec<Job> {
    let mut jobs = vec![Job::new(
        "dbt-debug",
        "check",
        "Fails when the profile or the connection is wrong.",
        &["command: dbt debug", "# secrets: [DBT_PASSWORD]     # if profiles.yml uses env_var()"],
    )];
    if has_packages {
        let deps = Job::new("dbt-deps", "check", "", &["command: dbt deps"]);
        jobs.push(deps);
    }
    let last = if has_packages { "dbt-debug, dbt-deps" } else { "dbt-debug" };
    jobs.push(
        Job::new(
            "dbt-build",
            "build",
            "Runs models, tests, seeds and snapshots in the order of their references.",
            &["command: dbt build", "artifacts: [target/run_results.json]"],
        )
        .needs(Some(last)),
    );
    jobs
}

fn sql(found: &Detected) -> Vec<Job> {
    let files = &found.sql;
    if files.is_empty() && !found.wants_sql && found.sqlite.is_none() {
        return Vec::new();
    }
    let mut jobs = vec![connects(found.sqlite.as_deref())];
    if files.is_empty() {
        let example = SqlFile { path: "migrations/0001_first.sql".to_owned(), down: None };
        let mut job = applies(&example, found.sqlite.as_deref());
        job.comment = vec!["One job for each file. This one has to be written still.".to_owned()];
        jobs.push(job.needs(Some("connects")));
    // Hundreds of jobs in the first file would hide what a pipeline is.
    } else if files.len() > SQL_FILES_MAX {
        jobs.push(applies_all(files, found.sqlite.as_deref()).needs(Some("connects")));
    } else {
        // A chain, because migrations build on each other.
        let mut before = "connects".to_owned();
        for (at, file) in files.iter().enumerate() {
            let mut job = applies(file, found.sqlite.as_deref());
            // Job names are cut from file names, so two files can give one name.
            if jobs.iter().any(|other| other.name == job.name) {
                job.name = format!("{}-{}", job.name, at + 1);
            }
            let name = job.name.clone();
            jobs.push(job.needs(Some(&before)));
            before = name;
        }
    }
    // In the file and not only on the terminal: the reader of the file must know that it is
    // incomplete.
    if found.sql_left_out > 0 {
        let count = found.sql_left_out;
        jobs[1].comment.push(format!(
            "Not included, because the name has characters with a meaning for the shell: {count}."
        ));
    }
    if let Some(database) = &found.sqlite {
        let last = jobs[jobs.len() - 1].name.clone();
        let command =
            format!("command: test \"$(sqlite3 {database} 'PRAGMA integrity_check')\" = ok");
        jobs.push(Job::new("integrity", "validate", "", &[&command]).needs(Some(&last)));
    }
    jobs
}

/// The database is there.
fn connects(sqlite: Option<&str>) -> Job {
    match sqlite {
        Some(database) => {
            let command = format!("command: sqlite3 -readonly {database} 'SELECT 1'");
            Job::new("connects", "check", "", &[&command, "on_failure: abort"])
        }
        None => Job::new(
            "connects",
            "check",
            "For PostgreSQL. Put the client of another database in its place.",
            &[
                "command: psql -X -c 'SELECT 1' \"$DATABASE_URL\"",
                "secrets: [DATABASE_URL]",
                "on_failure: abort",
            ],
        ),
    }
}

/// The words that run a file, up to its name.
fn client(sqlite: Option<&str>, file: &str) -> String {
    match sqlite {
        Some(database) => format!("sqlite3 -bail {database} < {file}"),
        None => format!("psql -X -v ON_ERROR_STOP=1 -1 -f {file} \"$DATABASE_URL\""),
    }
}

fn applies(file: &SqlFile, sqlite: Option<&str>) -> Job {
    let mut job = Job::new(&job_name(&file.path), "migrate", "", &[]);
    job.lines.push(format!("command: {}", client(sqlite, &file.path)));
    if let Some(down) = &file.down {
        job.lines.push(format!("undo: {}", client(sqlite, down)));
    }
    if sqlite.is_none() {
        job.lines.push("secrets: [DATABASE_URL]".to_owned());
    }
    job
}

/// One job for very many files.
fn applies_all(files: &[SqlFile], sqlite: Option<&str>) -> Job {
    let folder = files[0].path.split('/').next().unwrap_or("migrations");
    let comment =
        format!("{} files, one after the other; it stops at the first that fails.", files.len());
    let mut job = Job::new("apply-all", "migrate", &comment, &["command: |"]);
    for line in [
        "set -eu".to_owned(),
        format!("for file in {folder}/*.sql; do"),
        "  case $file in *.down.sql) continue ;; esac".to_owned(),
        "  echo \"$file\"".to_owned(),
        format!("  {}", client(sqlite, "\"$file\"")),
        "done".to_owned(),
    ] {
        job.lines.push(format!("  {line}"));
    }
    if sqlite.is_none() {
        job.lines.push("secrets: [DATABASE_URL]".to_owned());
    }
    job
}

/// `migrations/0001_create_users.up.sql` is the job `0001-create-users`.
fn job_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = name.strip_suffix(".up.sql").or_else(|| name.strip_suffix(".sql")).unwrap_or(name);
    let mut slug = String::new();
    for c in stem.chars() {
        let c = if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
        if c != '-' || !slug.ends_with('-') {
            slug.push(c);
        }
    }
    let slug = slug.trim_matches(['-', '.']);
    // A bare number would be one to YAML.
    if slug.is_empty() || slug.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return format!("sql-{slug}").trim_end_matches('-').to_owned();
    }
    slug.to_owned()
}

#[cfg(test)]
mod tests {
    use towpath_engine::plan::Plan;
    use towpath_pipeline::file::{Parsed, parse};

    use super::*;

    /// The plan of the file for `found`; any warning is a mistake of ours.
    fn good(found: &Detected) -> Plan {
        let text = text(found);
        match parse("towpath.yml", &text) {
            Ok(Parsed { plan, warnings }) => {
                assert_eq!(warnings, [], "{text}");
                assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
                plan
            }
            Err(problems) => panic!("{text}\n{}", problems.render("t", &text, false, None)),
        }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.jobs.iter().map(|job| job.name.as_str()).collect()
    }

    fn file(path: &str) -> SqlFile {
        SqlFile { path: path.into(), down: None }
    }

    #[test]
    fn every_combination_of_tools_is_a_valid_file() {
        for bits in 0_u32..64 {
            let on = |bit: u32| bits & (1 << bit) != 0;
            let found = Detected {
                alembic: on(0),
                dbt: on(1),
                dbt_packages: on(1),
                sqlc: on(2),
                atlas_env: on(3).then(|| "local".to_owned()),
                sql: if on(4) {
                    vec![file("migrations/1.sql"), file("sql/a=b,c+d@e.sql")]
                } else {
                    vec![]
                },
                sql_left_out: usize::from(on(4)),
                sqlite: on(5).then(|| "shop.db".to_owned()),
                wants_sql: on(4),
            };
            good(&found);
        }
    }

    #[test]
    fn each_template_alone() {
        assert_eq!(names(&good(&Detected::default())), ["check-room", "migrate", "cutover"]);
        let alembic = Detected { alembic: true, ..Detected::default() };
        assert_eq!(names(&good(&alembic)), ["alembic-heads", "alembic-upgrade", "alembic-check"]);
        let dbt = Detected { dbt: true, ..Detected::default() };
        assert_eq!(names(&good(&dbt)), ["dbt-debug", "dbt-build"]);
        let sql = good(&Detected::default().only_sql());
        assert_eq!(names(&sql), ["connects", "0001-first"]);
        assert_eq!(sql.jobs[1].secrets, ["DATABASE_URL"]);
    }

    #[test]
    fn each_sql_file_waits_for_the_one_before() {
        let mut pair = file("migrations/0002_orders.up.sql");
        pair.down = Some("migrations/0002_orders.down.sql".into());
        let sql = vec![file("migrations/0001_Users.sql"), pair, file("migrations/0002-orders.sql")];
        let plan = good(&Detected { sql, ..Detected::default() });

        assert_eq!(names(&plan), ["connects", "0001-users", "0002-orders", "0002-orders-3"]);
        assert_eq!(plan.jobs[2].needs, ["0001-users".into()]);
        assert_eq!(
            &*plan.jobs[1].script,
            "psql -X -v ON_ERROR_STOP=1 -1 -f migrations/0001_Users.sql \"$DATABASE_URL\""
        );
        let undo = plan.jobs[2].undo.as_deref().unwrap();
        assert!(undo.contains("0002_orders.down.sql"), "{undo}");
    }

    #[test]
    fn very_many_files_are_one_job() {
        let sql: Vec<SqlFile> =
            (0..=SQL_FILES_MAX).map(|n| file(&format!("sql/{n}.sql"))).collect();
        let plan = good(&Detected { sql, ..Detected::default() });
        assert_eq!(names(&plan), ["connects", "apply-all"]);
        assert!(plan.jobs[1].script.contains("for file in sql/*.sql"), "{}", plan.jobs[1].script);
    }

    #[test]
    fn names_of_files_become_names_of_jobs() {
        let cases = [
            ("migrations/0001_create_users.up.sql", "0001-create-users"),
            ("V1.2__Add.sql", "v1.2-add"),
            ("1.sql", "sql-1"),
            ("1.2.sql", "sql-1.2"),
            ("---.sql", "sql"),
            ("true.sql", "true"),
        ];
        for (path, name) in cases {
            assert_eq!(job_name(path), name, "{path}");
        }
    }
}
