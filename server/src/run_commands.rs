//! Commands on runs: what is checked before one is decided. The decision itself is the engine's.

pub(crate) mod checks;
mod import;

use std::sync::Arc;

use towpath_engine::{
    decide::{Command, CreateRun, EditedPlan, ImportRun, ResumeRun},
    gate::Identity,
    ids::{Actor, Digest, RunId, StageName},
    refusal::Refusal,
    run::Header,
    trace::TraceContext,
};

use crate::{
    auth::{Requester, roles::Role},
    bundles::Bundles,
    command_error::CommandError,
    pipeline_files::{PipelineFiles, ReadFile, SentFile},
    run_ids::{id_of, new_id},
    runs::Runs,
    streams::Loaded,
    sync::locked,
};

/// Jobs that run at once in an imported run, which runs none until it is resumed.
const IMPORTED_PARALLELISM: u32 = 4;

/// A run that a client asks for.
#[derive(Debug)]
pub(crate) struct StartRun {
    pub(crate) file: SentFile,
    pub(crate) parallelism: u32,
    /// Every gate is open from the beginning.
    pub(crate) gates_preapproved: bool,
    /// The trace in which the run is asked for.
    pub(crate) traceparent: Option<TraceContext>,
    /// Requests of one actor with the same key begin one run. Empty: each begins one.
    pub(crate) idempotency_key: String,
    /// The addresses that the client says are the actor's.
    pub(crate) emails: Vec<String>,
}

/// The resumption of a run that a client asks for.
#[derive(Debug)]
pub(crate) struct ResumeRequest {
    /// What names the run.
    pub(crate) run: String,
    pub(crate) from: Option<StageName>,
    /// Its file as it is now.
    pub(crate) file: Option<SentFile>,
    pub(crate) accept_changes: bool,
}

/// Carries out commands on runs.
#[derive(Clone, Debug)]
pub(crate) struct RunCommands {
    runs: Arc<Runs>,
    files: PipelineFiles,
    bundles: Bundles,
}

impl RunCommands {
    pub(crate) fn new(runs: Arc<Runs>, bundles: Bundles) -> Self {
        Self { runs, files: PipelineFiles::new(), bundles }
    }

    /// Carries out `command` on the run that `asked` names. Durable when it returns.
    pub(crate) async fn execute(
        &self,
        asked: &str,
        command: Command,
        by: &Actor,
    ) -> Result<RunId, CommandError> {
        let id = self.runs.find(asked)?;
        self.runs.execute(&id, command, by).await?;
        Ok(id)
    }

    /// Begins a run, or finds the one that an earlier request with the same key began.
    pub(crate) async fn start(
        &self,
        start: StartRun,
        requester: &Requester,
    ) -> Result<RunId, CommandError> {
        let StartRun { file, parallelism, gates_preapproved, traceparent, .. } = start;
        if gates_preapproved {
            // Else an operator would pass the gates that were made to stop operators.
            requester.needs(&[Role::Approver], "a run whose gates are open")?;
        }
        let file = self.files.read(file).await?;
        self.bundles.check_source(file.source.as_ref()).await?;
        let create = CreateRun {
            requester: requester.identity(&start.emails),
            parallelism,
            gates_preapproved,
            traceparent: traceparent.map(|context| context.to_string()),
            ..creation(file)
        };
        if start.idempotency_key.is_empty() {
            return self.create(create, &requester.actor).await;
        }
        self.create_once(create, start.idempotency_key, &requester.actor).await
    }

    async fn create(&self, create: CreateRun, by: &Actor) -> Result<RunId, CommandError> {
        let id = create.run.clone();
        self.runs.execute(&id, Command::Create(create), by).await?;
        Ok(id)
    }

    async fn create_once(
        &self,
        mut create: CreateRun,
        key: String,
        by: &Actor,
    ) -> Result<RunId, CommandError> {
        let begun = locked(&self.runs.list).begun_by(by, &key).cloned();
        if let Some(id) = begun {
            return self.begun(id, &create).await;
        }
        // An id that follows from the key: of two requests at once, one finds that the run exists.
        // No name holds a line feed, so no two pairs of name and key make the same text.
        create.run = id_of(&Digest::of(format!("request {by}\n{key}").as_bytes()));
        create.idempotency_key = Some(key);
        match self.create(create.clone(), by).await {
            Err(CommandError::Refused(Refusal::RunExists)) => {
                self.begun(create.run.clone(), &create).await
            }
            created => created,
        }
    }

    /// The run that an earlier request with the same key began.
    async fn begun(&self, id: RunId, again: &CreateRun) -> Result<RunId, CommandError> {
        let same = |loaded: &Loaded| {
            loaded.state.header().is_some_and(|header| is_same_request(header, again))
        };
        if self.runs.read_durable(&id, same).await? { Ok(id) } else { Err(CommandError::KeyReused) }
    }

    /// Resumes a run, with its file as it is now if that was sent.
    pub(crate) async fn resume(
        &self,
        resume: ResumeRequest,
        requester: &Requester,
    ) -> Result<RunId, CommandError> {
        let ResumeRequest { run, from, file, accept_changes } = resume;
        let file = match file {
            Some(file) => Some(self.files.read(file).await?),
            None => None,
        };
        self.bundles.check_source(file.as_ref().and_then(|file| file.source.as_ref())).await?;
        // Whether the edit takes a gate away is decided together with it, on the state it changes.
        let may_lift_gates =
            requester.needs(&[Role::Approver], "a plan that takes a gate away").is_ok();
        let file = file.map(|file| edited(file, requester));
        let command = Command::Resume(ResumeRun { from, file, accept_changes, may_lift_gates });
        self.execute(&run, command, &requester.actor).await
    }

    /// Records a run that another tool ran, as its run file says.
    pub(crate) async fn import(
        &self,
        file: SentFile,
        record: &[u8],
        requester: &Requester,
    ) -> Result<RunId, CommandError> {
        let file = self.files.read(file).await?;
        let jobs = import::jobs(record)?;
        let create = CreateRun {
            requester: requester.identity(&[]),
            parallelism: IMPORTED_PARALLELISM,
            ..creation(file)
        };
        let id = create.run.clone();
        let command = Command::Import(ImportRun { create, jobs });
        self.runs.execute(&id, command, &requester.actor).await?;
        Ok(id)
    }
}

/// Whether a run that exists is what `again` asks for. Whatever changes what the run does is
/// compared: an answer with a run of other arguments would hide that the one that was asked for was
/// not begun.
fn is_same_request(header: &Header, again: &CreateRun) -> bool {
    header.file_sha256 == again.file_sha256
        && header.source == again.source
        && header.parallelism == again.parallelism
        && header.gates_preapproved == again.gates_preapproved
        // A run that brings its files along runs in a folder of its worker.
        && (again.source.is_some() || header.folder == again.folder)
}

/// What `file` means now, and who sends it.
fn edited(file: ReadFile, requester: &Requester) -> EditedPlan {
    let ReadFile { sha256, plan, source, authors, .. } = file;
    EditedPlan { file_sha256: sha256, plan, source, requester: requester.identity(&[]), authors }
}

/// A new run of `file`, under an id of its own.
fn creation(file: ReadFile) -> CreateRun {
    CreateRun {
        authors: file.authors,
        requester: Identity::default(),
        run: new_id(),
        file: file.name,
        folder: file.folder,
        file_sha256: file.sha256,
        plan: file.plan,
        source: file.source,
        parallelism: 0,
        gates_preapproved: false,
        traceparent: None,
        idempotency_key: None,
    }
}

#[cfg(test)]
mod tests {
    use towpath_storage::Blobs;

    use super::*;
    use crate::testing::{Fixture, creation as planned, job};

    /// Commands on the runs of a fixture, and the directory of their bundles.
    fn commands() -> (Fixture, RunCommands, tempfile::TempDir) {
        let (fixture, dir) = (Fixture::new(), tempfile::tempdir().unwrap());
        let blobs = Arc::new(Blobs::open(&dir.path().join("blobs")).unwrap());
        let bundles = Bundles::new(Arc::clone(&fixture.runs), blobs);
        let commands = RunCommands::new(Arc::clone(&fixture.runs), bundles);
        (fixture, commands, dir)
    }

    fn file(job: &str) -> SentFile {
        let head = "version: \"1.0\"\nstages: [s]\njobs:\n";
        SentFile {
            name: "towpath.yml".to_owned(),
            folder: "/".to_owned(),
            content: format!("{head}  a: {{stage: s, command: x, on_failure: abort{job}}}\n")
                .into(),
            source: None,
            authors: None,
        }
    }

    fn start(file: SentFile, key: &str) -> StartRun {
        StartRun {
            file,
            parallelism: 1,
            gates_preapproved: false,
            traceparent: None,
            idempotency_key: key.to_owned(),
            emails: Vec::new(),
        }
    }

    fn code<T: std::fmt::Debug>(refused: Result<T, CommandError>) -> &'static str {
        refused.unwrap_err().code().as_str()
    }

    #[tokio::test]
    async fn a_run_of_other_arguments_is_not_the_one_that_was_asked_for() {
        let fixture = Fixture::new();
        let asked = planned("r", vec![job("a", &[])]);
        let run = fixture.begins_as(asked.clone()).await;
        let header = |loaded: &Loaded| loaded.state.header().cloned();
        let header = fixture.runs.read_durable(&run, header).await.unwrap().unwrap();

        assert!(is_same_request(&header, &asked));
        for other in [
            CreateRun { parallelism: 5, ..asked.clone() },
            CreateRun { gates_preapproved: true, ..asked.clone() },
            CreateRun { file_sha256: Digest([2; 32]), ..asked.clone() },
            CreateRun { folder: "/other".to_owned(), ..asked.clone() },
        ] {
            assert!(!is_same_request(&header, &other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_key_begins_one_run_for_each_actor() {
        let (_fixture, commands, _dir) = commands();
        let ana = Requester::with_roles("ana", &[Role::Operator]);
        let first = commands.start(start(file(""), "k"), &ana).await.unwrap();

        assert_eq!(commands.start(start(file(""), "k"), &ana).await.unwrap(), first);
        let other = commands.start(start(file(", env: {E: x}"), "k"), &ana).await;
        assert_eq!(code(other), "IDEMPOTENCY_KEY_REUSED");
        let bob = Requester::with_roles("bob", &[Role::Operator]);
        assert_ne!(commands.start(start(file(""), "k"), &bob).await.unwrap(), first);
    }

    #[tokio::test]
    async fn open_gates_need_an_approver_before_the_file_is_read() {
        let (fixture, commands, _dir) = commands();
        let unreadable = || StartRun { gates_preapproved: true, ..start(file(", x: y"), "") };

        let operator = Requester::with_roles("ana", &[Role::Operator]);
        assert_eq!(code(commands.start(unreadable(), &operator).await), "FORBIDDEN");
        let approver = Requester::with_roles("ana", &[Role::Operator, Role::Approver]);
        assert_eq!(code(commands.start(unreadable(), &approver).await), "FILE_INVALID");
        assert!(locked(&fixture.runs.list).newest_first().next().is_none());
    }

    #[tokio::test]
    async fn an_edit_that_takes_a_gate_away_needs_an_approver() {
        let (_fixture, commands, _dir) = commands();
        let operator = Requester::with_roles("ana", &[Role::Operator]);
        let gated = start(file(", when: manual"), "");
        let run = commands.start(gated, &operator).await.unwrap();
        let without_gate = || ResumeRequest {
            run: run.to_string(),
            from: None,
            file: Some(file("")),
            accept_changes: true,
        };

        assert_eq!(code(commands.resume(without_gate(), &operator).await), "GATE_LIFTED");
        let approver = Requester::with_roles("ana", &[Role::Operator, Role::Approver]);
        let resumed = commands.resume(without_gate(), &approver).await;
        assert!(resumed.is_ok(), "{resumed:?}");
    }
}
