//! A server to tell stories about, and the questions and commands of its clients.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tonic::{
    Status, Streaming,
    transport::{Channel, Error as TransportError},
};
use tonic_types::StatusExt as _;
use towpath_engine::{code::ErrorCode, time::Timestamp};
use towpath_proto::streams::Piece;
use towpath_proto::streams::Records;
use towpath_proto::v1::{
    self, gates_service_client::GatesServiceClient, log_service_client::LogServiceClient,
    runs_service_client::RunsServiceClient, workers_service_client::WorkersServiceClient,
};
use towpath_proto::words::Word as _;
use towpath_server::{Access, Clock, Server, SetClock, SystemClock};
use towpath_wire::ERROR_DOMAIN;
use towpath_wire::dial::dial_socket;

use crate::ScriptedWorker;

/// Who asks in most stories.
pub const ANA: &str = "human:ana";
/// How long a story waits for something before it says that it never came.
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// The time of the test clocks.
pub const BEGINNING: Timestamp = Timestamp(1_763_715_723_000);

/// A pipeline file: its version, and `rest`.
pub fn file(rest: &str) -> String {
    format!("version: \"1.0\"\n{rest}")
}

/// The stable code of a refusal or failure.
pub fn code(status: &Status) -> String {
    let details = status.get_error_details();
    let told = details.error_info().expect("a status names its code in an ErrorInfo");
    assert_eq!(told.domain, ERROR_DOMAIN);
    let code: ErrorCode = told.reason.parse().expect("a code of this version");
    code.to_string()
}

/// Runs `story` on a runtime of its own, and lets that die with everything on it: whatever the
/// story opened and did not close ends as it does in a crash of the process.
pub fn on_a_runtime<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(story)
}

/// Waits until `holds` says yes.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    bounded(what, looking).await;
}

/// A server, the clock on its wall, and clients of it.
#[derive(Debug)]
pub struct TestServer {
    server: Server,
    clock: Option<Arc<SetClock>>,
    channel: Channel,
}

impl TestServer {
    /// A server that forgets everything in the end, with a clock that only the test moves.
    pub async fn in_memory() -> Self {
        Self::with_set_clock("memory:").await
    }

    /// A server in `folder` that forgets nothing, with a clock that only the test moves.
    pub async fn in_folder(folder: &Path) -> Self {
        Self::with_set_clock(&format!("sled:{}", folder.display())).await
    }

    /// A server at `url`, with a clock that only the test moves.
    pub async fn with_set_clock(url: &str) -> Self {
        let clock = Arc::new(SetClock::at(BEGINNING));
        let server = Self::open(url, Arc::<SetClock>::clone(&clock)).await;
        Self { clock: Some(clock), ..server }
    }

    /// A server in memory with the clock of the machine, for jobs that are real processes.
    pub async fn with_system_clock() -> Self {
        Self::open("memory:", Arc::new(SystemClock)).await
    }

    /// A server at `url` whose leases lapse after `lease_ms` milliseconds without a heartbeat.
    pub async fn with_lease(url: &str, lease_ms: u64) -> Self {
        let clock = Arc::new(SystemClock);
        let server = Server::open_with_lease(url, clock, lease_ms).await.expect("the server opens");
        let channel = server.connect();
        Self { server, clock: None, channel }
    }

    /// Serves other machines at `address`, with any free port for port 0; answers where.
    pub async fn serve(&self, address: &str) -> String {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        self.serve_with(listener, Access::default())
    }

    /// Serves other machines, as far as `access` lets them in, at any free port; answers where.
    pub async fn serve_guarded(&self, access: Access) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("the address is free");
        self.serve_with(listener, access)
    }

    fn serve_with(&self, listener: TcpListener, access: Access) -> String {
        self.server.serve(listener, access).expect("a listener can be served").to_string()
    }

    /// The client of workers.
    pub fn workers(&self) -> WorkersServiceClient<Channel> {
        WorkersServiceClient::new(self.channel())
    }

    async fn open(url: &str, clock: Arc<dyn Clock>) -> Self {
        let server = Server::open(url, clock).await.expect("the server opens");
        let channel = server.connect();
        Self { server, clock: None, channel }
    }

    /// The server itself.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The connection of the server's own clients.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A connection from outside, through the socket in the server's folder.
    pub async fn dial(&self) -> Result<Channel, TransportError> {
        self.server.listen_locally().expect("the socket can be bound");
        dial_socket(self.server.socket()).await
    }

    /// Closes the server in good order.
    pub async fn close(self) {
        self.server.close().await;
    }

    /// Lets `ms` milliseconds pass, and does what is due then.
    pub async fn pass(&self, ms: u64) {
        self.clock.as_ref().expect("a manual clock").advance(ms);
        self.server.tick().await;
    }

    /// Sets the wall clock by `ms` milliseconds, in either direction. No time passes.
    pub fn set_clock(&self, ms: i64) {
        self.clock.as_ref().expect("a manual clock").jump(ms);
    }

    /// Gives out everything that can be given out now. What runs after this was ready before it;
    /// what does not, was not.
    pub async fn settle(&self) {
        self.server.tick().await;
    }

    /// The client of runs.
    pub fn runs(&self) -> RunsServiceClient<Channel> {
        RunsServiceClient::new(self.channel())
    }

    /// The client of gates.
    pub fn gates(&self) -> GatesServiceClient<Channel> {
        GatesServiceClient::new(self.channel())
    }

    /// The client of the log.
    pub fn log(&self) -> LogServiceClient<Channel> {
        LogServiceClient::new(self.channel())
    }

    /// Begins a run of the pipeline file `yaml`, at most four jobs at once; answers its id.
    pub async fn start(&self, yaml: &str) -> String {
        self.start_with(yaml, 4).await
    }

    /// Begins a run with at most `parallelism` jobs at once; answers its id.
    pub async fn start_with(&self, yaml: &str, parallelism: u32) -> String {
        let request = v1::StartRunRequest { parallelism, ..start_request(yaml) };
        self.try_start(request).await.expect("the run begins").id
    }

    /// Asks for a run.
    pub async fn try_start(&self, request: v1::StartRunRequest) -> Result<v1::Run, Status> {
        Ok(self.runs().start_run(request).await?.into_inner().run.unwrap_or_default())
    }

    /// The run that `run` names.
    pub async fn run(&self, run: &str) -> v1::Run {
        let request = v1::GetRunRequest { run: run.to_owned(), at: None };
        self.runs()
            .get_run(request)
            .await
            .expect("the run is there")
            .into_inner()
            .run
            .unwrap_or_default()
    }

    /// The phase of the run, or its outcome once it has ended, in one word.
    pub async fn phase(&self, run: &str) -> String {
        phase_word(&self.run(run).await)
    }

    /// How many jobs of the run stand where.
    pub async fn counts(&self, run: &str) -> v1::JobCounts {
        self.run(run).await.counts.expect("a run counts its jobs")
    }

    /// All jobs of the run, with everything about them.
    pub async fn jobs(&self, run: &str) -> Vec<v1::Job> {
        let (mut jobs, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListJobsRequest {
                run: run.to_owned(),
                page_size: 0,
                page_token,
                view: v1::JobView::Full.into(),
                at: None,
            };
            let page = self.runs().list_jobs(request).await.expect("a page").into_inner();
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return jobs;
            }
        }
    }

    /// The job of the run that is called `name`.
    pub async fn job(&self, run: &str, name: &str) -> v1::Job {
        let jobs = self.jobs(run).await;
        jobs.into_iter().find(|job| job.name == name).expect("the run has the job")
    }

    /// Every job of the run with its state: `a succeeded, b waiting`.
    pub async fn states(&self, run: &str) -> String {
        let jobs = self.jobs(run).await;
        let words: Vec<_> =
            jobs.iter().map(|job| format!("{} {}", job.name, job.state().word())).collect();
        words.join(", ")
    }

    /// Why a job is in its state.
    pub async fn explain(&self, run: &str, job: &str) -> v1::ExplainJobResponse {
        let request = v1::ExplainJobRequest { run: run.to_owned(), job: job.to_owned(), at: None };
        self.runs().explain_job(request).await.expect("an explanation").into_inner()
    }

    /// Opens the gate of `job`, having read what waits there.
    pub async fn approve(&self, run: &str, job: &str) {
        let approval_digest = self.job(run, job).await.approval_digest;
        self.decide(run, job, &approval_digest, true).await.expect("the gate opens");
    }

    /// Approves or rejects what `approval_digest` says.
    pub async fn decide(
        &self,
        run: &str,
        job: &str,
        approval_digest: &str,
        approve: bool,
    ) -> Result<String, Status> {
        let (run, job, actor) = (run.to_owned(), job.to_owned(), ANA.to_owned());
        let (approval_digest, comment) = (approval_digest.to_owned(), "counts read".to_owned());
        let mut gates = self.gates();
        if approve {
            let emails = Vec::new();
            let request =
                v1::ApproveGateRequest { run, job, approval_digest, comment, actor, emails };
            let run = gates.approve_gate(request).await?.into_inner().run;
            return Ok(phase_word(&run.expect("a run")));
        }
        let request = v1::RejectGateRequest { run, job, approval_digest, comment, actor };
        let run = gates.reject_gate(request).await?.into_inner().run;
        Ok(phase_word(&run.expect("a run")))
    }

    /// Ends the run.
    pub async fn cancel(&self, run: &str) -> Result<v1::Run, Status> {
        let (run, reason, actor) = (run.to_owned(), "enough".to_owned(), ANA.to_owned());
        let request = v1::CancelRunRequest { run, reason, actor };
        Ok(self.runs().cancel_run(request).await?.into_inner().run.unwrap_or_default())
    }

    /// Continues the run under its frozen plan.
    pub async fn resume(&self, run: &str) -> Result<v1::Run, Status> {
        self.resume_with(v1::ResumeRunRequest { run: run.to_owned(), ..Default::default() }).await
    }

    /// Continues a run.
    pub async fn resume_with(&self, request: v1::ResumeRunRequest) -> Result<v1::Run, Status> {
        let request = v1::ResumeRunRequest { actor: ANA.to_owned(), ..request };
        Ok(self.runs().resume_run(request).await?.into_inner().run.unwrap_or_default())
    }

    /// Gives one job another chance.
    pub async fn retry(&self, run: &str, job: &str) -> Result<v1::Run, Status> {
        let (run, job, actor) = (run.to_owned(), job.to_owned(), ANA.to_owned());
        Ok(self
            .runs()
            .retry_job(v1::RetryJobRequest { run, job, actor })
            .await?
            .into_inner()
            .run
            .unwrap_or_default())
    }

    /// Everything a stream of output or of an artifact carries.
    pub async fn collect(mut stream: Streaming<impl Piece>) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk?.content());
        }
        Ok(all)
    }

    /// What try number `attempt` of a job printed, in the captured format.
    pub async fn output(&self, run: &str, job: &str, attempt: u32, follow: bool) -> Vec<u8> {
        let (run, job) = (run.to_owned(), job.to_owned());
        let request = v1::ReadOutputRequest { run, job, attempt, follow };
        let stream = self.runs().read_output(request).await.expect("output").into_inner();
        bounded("the end of the output", Self::collect(stream)).await.expect("output")
    }

    /// The records of the run's own stream (or with an empty id, of the log) after `after`.
    pub async fn records(&self, run: &str, after: u64) -> Vec<v1::Record> {
        let request = v1::FollowRequest { run: run.to_owned(), after, follow: false };
        let mut stream =
            Records::new(self.log().follow(request).await.expect("a log").into_inner());
        let mut records = Vec::new();
        while let Some(record) = bounded("the end of the log", stream.next()).await {
            records.push(record.expect("a record"));
        }
        records
    }

    /// The kinds of all events of the run, oldest first.
    pub async fn kinds(&self, run: &str) -> Vec<String> {
        self.records(run, 0).await.into_iter().map(|record| record.kind).collect()
    }

    /// How many events of `kind` the run has.
    pub async fn count(&self, run: &str, kind: &str) -> usize {
        self.kinds(run).await.iter().filter(|found| *found == kind).count()
    }

    /// The payload of the newest event of `kind`, as JSON.
    pub async fn newest(&self, run: &str, kind: &str) -> serde_json::Value {
        let records = self.records(run, 0).await;
        let record = records.iter().rfind(|record| record.kind == kind).expect("such an event");
        serde_json::from_slice(&record.payload).expect("an event is JSON")
    }

    /// Waits until the run has `times` events of `kind`.
    pub async fn until(&self, run: &str, kind: &str, times: usize) {
        let request = v1::FollowRequest { run: run.to_owned(), after: 0, follow: true };
        let mut stream =
            Records::new(self.log().follow(request).await.expect("a log").into_inner());
        let what = format!("{times} × `{kind}` in run {run}");
        let seen = async {
            let mut left = times;
            while left > 0 {
                let record = stream.next().await.expect("the log continues").expect("a record");
                left -= usize::from(record.kind == kind);
            }
        };
        bounded(&what, seen).await;
    }

    /// Waits until the run has ended; answers how.
    pub async fn ended(&self, run: &str) -> String {
        self.until(run, "run_finished", 1).await;
        self.phase(run).await
    }

    /// Lets the doctor look at everything; answers what does not agree.
    pub async fn findings(&self) -> Vec<String> {
        let request = v1::CheckRequest {};
        let mut stream = self.log().check(request).await.expect("a check").into_inner();
        let mut last = v1::CheckResponse::default();
        while let Some(progress) = bounded("the end of the check", stream.next()).await {
            last = progress.expect("the log can be read");
        }
        assert!(last.done, "the check came to its end");
        last.findings
    }

    /// A worker of the story, with `slots` slots and no tags.
    pub async fn worker(&self, name: &str, slots: u32) -> ScriptedWorker {
        self.worker_like(v1::Hello { worker: name.to_owned(), slots, ..Default::default() }).await
    }

    /// A worker of the story that presents itself like this.
    pub async fn worker_like(&self, hello: v1::Hello) -> ScriptedWorker {
        ScriptedWorker::connect(self.channel(), hello).await.expect("the worker is welcome")
    }
}

/// The phase of a run, or its outcome once it has ended, in one word.
pub fn phase_word(run: &v1::Run) -> String {
    let outcome = run.outcome();
    if outcome == v1::RunOutcome::Unspecified { run.phase().word() } else { outcome.word() }
}

/// What a story says of a job.
pub trait SeenJob {
    /// Its state in one word.
    fn word(&self) -> String;

    /// Why it failed, in the words of the engine, or why it was skipped: the cause, the need, the
    /// root and how that ended. Empty: neither.
    fn reason(&self) -> String;
}

impl SeenJob for v1::Job {
    fn word(&self) -> String {
        self.state().word()
    }

    fn reason(&self) -> String {
        if let Some(failure) = &self.failure {
            let cause = towpath_wire::read_back::failure_cause(failure);
            return cause.map_or_else(|| failure.message.clone(), |cause| cause.to_string());
        }
        let Some(skip) = &self.skip else { return String::new() };
        let words =
            [skip.cause().word(), skip.need.clone(), skip.root.clone(), skip.root_state().word()];
        words
            .into_iter()
            .filter(|word| !word.is_empty() && word != "unspecified")
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// The request for a run of the pipeline file `yaml`.
pub fn start_request(yaml: &str) -> v1::StartRunRequest {
    v1::StartRunRequest {
        file: Some(pipeline(yaml)),
        parallelism: 4,
        actor: ANA.to_owned(),
        ..Default::default()
    }
}

/// The pipeline file `yaml` as a message.
pub(crate) fn pipeline(yaml: &str) -> v1::PipelineFile {
    v1::PipelineFile {
        name: "towpath.yml".to_owned(),
        folder: std::env::temp_dir().display().to_string(),
        content: yaml.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

/// The answer of `waited`, if it comes in time.
pub(crate) async fn bounded<T>(what: &str, waited: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WAIT_MAX, waited).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {WAIT_MAX:?} for {what}"),
    }
}
