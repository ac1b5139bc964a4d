//! Gates that require certain people, several of them, and none who requested the run. Who they
//! are is proven by tokens, at a port.

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use towpath_engine::time::Timestamp;
use towpath_proto::time::timestamp_ms;
use towpath_proto::v1::{
    self, gates_service_client::GatesServiceClient, runs_service_client::RunsServiceClient,
};
use towpath_server::{
    Access, Clock as _, SystemClock,
    auth::{
        roles::Role,
        tokens::{self, NewToken, TokenKind},
    },
};
use towpath_tests::SeenJob as _;
use towpath_tests::{TestServer, code, file, on_a_runtime, start_request};
use towpath_wire::dial::dial_tcp;

/// A server with a port, and people who come to it.
struct Town {
    server: TestServer,
    channel: Channel,
    secrets: std::collections::BTreeMap<String, String>,
}

impl Town {
    async fn new() -> Self {
        Self::around(TestServer::in_memory().await).await
    }

    async fn around(server: TestServer) -> Self {
        let address = server.serve_guarded(Access { strict: true, ..Access::default() }).await;
        let channel = dial_tcp(&address).expect("an address");
        Self { server, channel, secrets: [].into() }
    }

    fn issue(&mut self, name: &str, kind: TokenKind, roles: &[Role], emails: &[&str]) {
        let new = NewToken {
            name: name.to_owned(),
            kind,
            roles: roles.to_vec(),
            expires_at: None,
            emails: emails.iter().map(|text| (*text).to_owned()).collect(),
        };
        let issued = tokens::issue(&self.server.server().folder(), new, SystemClock.now());
        self.secrets.insert(name.to_owned(), issued.expect("a token").reveal().to_owned());
    }

    /// Tokens for people who may begin runs and approve.
    fn people(&mut self, names: &[&str]) {
        for name in names {
            self.issue(name, TokenKind::Human, &[Role::Operator, Role::Approver], &[]);
        }
    }

    /// `message` as `name` sends it.
    fn of<T>(&self, name: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let header = format!("Bearer {}", self.secrets[name]);
        let header: MetadataValue<Ascii> = header.parse().expect("a header");
        request.metadata_mut().insert("authorization", header);
        request
    }

    async fn try_start(&self, name: &str, request: v1::StartRunRequest) -> Result<String, Status> {
        let request = v1::StartRunRequest { actor: String::new(), ..request };
        let run =
            RunsServiceClient::new(self.channel.clone()).start_run(self.of(name, request)).await?;
        Ok(run.into_inner().run.unwrap_or_default().id)
    }

    /// A run that `name` asked for, whose only job is a gate with this policy.
    async fn starts(&self, name: &str, policy: &str) -> String {
        self.try_start(name, start_request(&gated(policy))).await.expect("the run begins")
    }

    async fn gate(&self, run: &str) -> v1::Gate {
        let request = v1::ListGatesRequest { run: run.to_owned(), ..Default::default() };
        let gates = self.server.gates().list_gates(request).await.expect("gates");
        gates.into_inner().gates.pop().expect("a gate waits")
    }

    /// `name` approves what `gate` shows, and claims everything that helps.
    async fn decide(&self, name: &str, gate: &v1::Gate) -> Result<v1::ApproveGateResponse, Status> {
        let v1::Gate { run, job, approval_digest, .. } = gate.clone();
        let emails = vec!["nobody@example.org".to_owned()];
        let message =
            v1::ApproveGateRequest { run, job, approval_digest, emails, ..Default::default() };
        let mut gates = GatesServiceClient::new(self.channel.clone());
        Ok(gates.approve_gate(self.of(name, message)).await?.into_inner())
    }

    async fn approves(&self, name: &str, run: &str) -> v1::ApproveGateResponse {
        self.decide(name, &self.gate(run).await).await.expect("they may")
    }

    /// The code with which `name` is refused at the gate of `run`, as forbidden.
    async fn refused(&self, name: &str, run: &str) -> String {
        let before = self.server.kinds(run).await.len();
        let refused = self.decide(name, &self.gate(run).await).await.expect_err("they may not");
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(self.server.kinds(run).await.len(), before, "a refusal leaves no trace");
        code(&refused)
    }

    async fn state(&self, run: &str) -> String {
        self.server.job(run, "switch").await.word()
    }
}

fn gated(policy: &str) -> String {
    file(&format!(
        "stages: [s]\njobs:\n  switch: {{stage: s, command: x, when: manual, gate: {policy}}}\n"
    ))
}

/// How many more people the gate wants; 0: it is open.
fn remaining(answer: &v1::ApproveGateResponse) -> u32 {
    answer.gate.as_ref().map_or(0, |gate| gate.approvals_remaining)
}

#[tokio::test]
async fn the_requester_of_a_run_may_not_approve_it() {
    let mut town = Town::new().await;
    town.people(&["ana", "bob"]);
    let run = town.starts("ana", "{not: [requester]}").await;

    assert_eq!(town.refused("ana", &run).await, "APPROVER_IS_REQUESTER");
    town.approves("bob", &run).await;

    let mut worker = town.server.worker("w", 1).await;
    worker.succeed("switch").await;
    assert_eq!(town.server.ended(&run).await, "succeeded");
    let approved = town.server.newest(&run, "gate_approved").await;
    assert_eq!(approved["by"], "human:bob");
    assert_eq!(
        approved["event"]["identity"]["roles"],
        serde_json::json!(["operator", "approver"]),
        "the log says what bob was then"
    );
}

#[tokio::test]
async fn a_second_token_makes_no_second_person() {
    let mut town = Town::new().await;
    let roles = [Role::Operator, Role::Approver];
    town.issue("ana", TokenKind::Human, &roles, &["ana@example.org"]);
    town.issue("Ana", TokenKind::Human, &roles, &[]);
    town.issue("ana-laptop", TokenKind::Human, &roles, &["Ana+laptop@example.org"]);
    town.people(&["bob"]);

    let run = town.starts("ana", "{not: [requester]}").await;
    for name in ["ana", "Ana", "ana-laptop"] {
        assert_eq!(town.refused(name, &run).await, "APPROVER_IS_REQUESTER", "{name}");
    }

    let run = town.starts("bob", "{min: 2}").await;
    for again in [false, true] {
        let reply = town.approves("ana", &run).await;
        assert_eq!(remaining(&reply), 1, "{again}");
        let gate = reply.gate.as_ref().expect("it waits");
        assert_eq!((gate.approvals.len(), &*gate.approvals[0].by), (1, "human:ana"));
    }
    for name in ["Ana", "ana-laptop"] {
        assert_eq!(town.refused(name, &run).await, "APPROVER_HAS_APPROVED", "{name}");
    }
    assert_eq!(town.server.count(&run, "gate_approved").await, 1);
    assert_eq!(remaining(&town.approves("bob", &run).await), 0);
    assert_eq!(town.state(&run).await, "approved");
}

#[tokio::test]
async fn programs_do_not_count() {
    let mut town = Town::new().await;
    town.people(&["ana"]);
    town.issue("copilot", TokenKind::Agent, &[Role::Approver, Role::Operator], &[]);
    town.issue("ci", TokenKind::Service, &[Role::Approver, Role::Operator], &[]);

    for policy in ["{}", "{min: 2}"] {
        let run = town.starts("ana", policy).await;
        assert_eq!(town.refused("copilot", &run).await, "APPROVER_NOT_HUMAN");
        assert_eq!(town.refused("ci", &run).await, "APPROVER_NOT_HUMAN");
        let yes = v1::StartRunRequest { gates_preapproved: true, ..start_request(&gated(policy)) };
        let run = town.try_start("ci", yes).await.expect("the run begins");
        assert_eq!(town.state(&run).await, "at_gate", "{policy}");
    }
}

#[tokio::test]
async fn the_gate_lets_in_whom_it_names_as_their_token_says() {
    let mut town = Town::new().await;
    town.people(&["ana", "bob", "dana"]);
    town.issue("chief", TokenKind::Human, &[Role::Approver, Role::Admin], &[]);
    let policy = "{approvers: ['role:admin', 'human:dana'], min: 2}";
    let run = town.starts("ana", policy).await;

    assert_eq!(town.refused("bob", &run).await, "APPROVER_NOT_ALLOWED");
    town.approves("dana", &run).await;
    assert_eq!(town.refused("bob", &run).await, "APPROVER_NOT_ALLOWED");
    town.approves("chief", &run).await;

    assert_eq!(town.state(&run).await, "approved");
}

#[tokio::test]
async fn authors_may_not_approve_even_with_claims() {
    let mut town = Town::new().await;
    let roles = [Role::Operator, Role::Approver];
    town.issue("eve", TokenKind::Human, &roles, &["eve@example.org"]);
    town.issue("ana", TokenKind::Human, &roles, &["ana@example.org"]);
    town.issue("bob", TokenKind::Human, &roles, &["bob@example.org"]);
    town.people(&["nemo"]);
    let mut request = start_request(&gated("{not: [author]}"));

    let unknown = town.try_start("ana", request.clone()).await.expect_err("unknown actors");
    assert_eq!(code(&unknown), "AUTHORS_UNKNOWN");
    let emails = vec!["Eve@example.org".to_owned()];
    let file = request.file.as_mut().expect("a file");
    file.authors = Some(v1::Authors { emails, uncommitted: true });
    let run = town.try_start("ana", request).await.expect("the run begins");

    assert_eq!(town.refused("eve", &run).await, "APPROVER_IS_AUTHOR");
    // Her edit was not committed.
    assert_eq!(town.refused("ana", &run).await, "APPROVER_IS_AUTHOR");
    // An address in the request is not believed beside a token.
    assert_eq!(town.refused("nemo", &run).await, "APPROVER_EMAIL_UNKNOWN");
    town.approves("bob", &run).await;
    assert_eq!(town.state(&run).await, "approved");
}

#[tokio::test]
async fn an_approval_after_a_rejection_is_refused() {
    let mut town = Town::new().await;
    town.people(&["ana", "bob", "cleo"]);
    let run = town.starts("ana", "{min: 2}").await;
    town.approves("bob", &run).await;
    let gate = town.gate(&run).await;
    let v1::Gate { run: of, job, .. } = gate.clone();
    let message = v1::RejectGateRequest { run: of, job, ..Default::default() };
    let mut gates = GatesServiceClient::new(town.channel.clone());

    gates.reject_gate(town.of("cleo", message)).await.expect("the gate is shut");

    let late = town.decide("ana", &gate).await.expect_err("it was rejected");
    assert_eq!(code(&late), "GATE_DECIDED");
    assert_eq!(town.server.phase(&run).await, "rejected");
}

#[tokio::test]
async fn of_many_who_want_to_be_the_last_one_is() {
    let mut town = Town::new().await;
    let names: Vec<String> = (0..8).map(|n| format!("p{n}")).collect();
    town.people(&names.iter().map(String::as_str).collect::<Vec<_>>());
    town.people(&["ana"]);
    let run = town.starts("ana", "{min: 2}").await;
    let gate = town.gate(&run).await;

    let all = names.iter().map(|name| town.decide(name, &gate));
    let replies = futures_util::future::join_all(all).await;

    let missing: Vec<u32> =
        replies.into_iter().map(|reply| remaining(&reply.expect("late is not wrong"))).collect();
    assert!(missing.iter().all(|missing| *missing <= 1), "{missing:?}");
    assert_eq!(town.server.count(&run, "gate_approved").await, 2);
    assert_eq!(town.state(&run).await, "approved");
}

const BEFORE: &str = "stages: [copy, cutover]
jobs:
  orders: {stage: copy, command: x}
  switch: {stage: cutover, command: COMMAND, when: manual, needs: [orders], gate: {min: 2}, tags: db}
";

fn pipeline(command: &str) -> v1::PipelineFile {
    let request = start_request(&file(&BEFORE.replace("COMMAND", command)));
    request.file.expect("a file")
}

#[tokio::test]
async fn an_edit_of_the_file_voids_approvals_and_the_log_says_so() {
    let mut town = Town::new().await;
    town.people(&["ana", "bob", "cleo"]);
    let request = v1::StartRunRequest { file: Some(pipeline("x")), ..start_request("") };
    let run = town.try_start("ana", request).await.expect("the run begins");
    let mut worker = town.server.worker("w", 1).await;
    worker.succeed("orders").await;
    town.approves("bob", &run).await;
    let before = town.gate(&run).await;

    let edit = v1::ResumeRunRequest {
        run: run.clone(),
        file: Some(pipeline("y")),
        accept_changes: true,
        ..Default::default()
    };
    RunsServiceClient::new(town.channel.clone())
        .resume_run(town.of("ana", edit))
        .await
        .expect("the edit is accepted");

    let voided = town.server.newest(&run, "gate_voided").await;
    assert_eq!(voided["event"]["approval_digest"], before.approval_digest);
    let plan = town.server.run(&run).await.plan_sha256;
    assert_eq!(voided["event"]["cause"], serde_json::json!({ "plan_replaced": plan }));
    let stale = town.decide("cleo", &before).await.expect_err("that was the old file");
    assert_eq!(code(&stale), "APPROVAL_STALE");
    let now = town.gate(&run).await;
    assert_eq!((now.approvals_remaining, now.approvals.len()), (2, 0));
    town.approves("cleo", &run).await;
    town.approves("bob", &run).await;
    let tags = vec!["db".to_owned()];
    let hello = v1::Hello { worker: "db".to_owned(), slots: 1, tags, ..Default::default() };
    town.server.worker_like(hello).await.succeed("switch").await;
    assert_eq!(town.server.ended(&run).await, "succeeded");
}

#[tokio::test]
async fn an_open_gate_shuts_when_what_was_approved_runs_again() {
    let mut town = Town::new().await;
    town.people(&["ana", "bob", "cleo"]);
    let request = v1::StartRunRequest { file: Some(pipeline("x")), ..start_request("") };
    let run = town.try_start("ana", request).await.expect("the run begins");
    // It does not offer `db`: the gate is open, and the job does not begin.
    let mut worker = town.server.worker("w", 1).await;
    worker.succeed("orders").await;
    town.approves("bob", &run).await;
    town.approves("cleo", &run).await;
    town.server.settle().await;
    assert_eq!(town.state(&run).await, "approved");

    let from_stage = "copy".to_owned();
    let again = v1::ResumeRunRequest { run: run.clone(), from_stage, ..Default::default() };
    town.server.resume_with(again).await.expect("the stage runs again");

    let voided = town.server.newest(&run, "gate_voided").await;
    assert_eq!(voided["event"]["cause"], serde_json::json!({ "stage_repeated": "copy" }));
    assert_eq!(town.state(&run).await, "waiting");
    worker.succeed("orders").await;
    let gate = town.gate(&run).await;
    assert_eq!((gate.approvals_remaining, gate.approvals.len()), (2, 0));
}

#[tokio::test]
async fn approvals_expire_before_the_job_begins() {
    let mut town = Town::new().await;
    town.people(&["ana", "bob"]);
    let run = town.starts("ana", "{expires: 10m, not: [requester]}").await;
    let first = town.gate(&run).await;
    town.approves("bob", &run).await;
    let job = town.server.job(&run, "switch").await;
    assert_eq!(
        (job.word().as_str(), job.approvals[0].expires_at),
        ("approved", job.approvals_expire_at)
    );

    town.server.pass(600_000).await;
    town.server.until(&run, "gate_voided", 1).await;

    let voided = town.server.newest(&run, "gate_voided").await;
    assert_eq!(voided["by"], "service:timer");
    let expired = job.approvals_expire_at.as_ref().and_then(timestamp_ms).map(Timestamp);
    assert_eq!(voided["event"]["cause"]["expired"], expired.expect("a time").to_string());
    let late = town.decide("bob", &first).await.expect_err("that was before");
    assert_eq!(code(&late), "APPROVAL_STALE");
    let mut worker = town.server.worker("w", 1).await;
    town.server.settle().await;
    assert_eq!(town.state(&run).await, "at_gate", "a worker is given nothing");
    town.approves("bob", &run).await;
    worker.succeed("switch").await;
}

#[tokio::test]
async fn approvals_expire_after_a_clock_that_was_ahead() {
    const YEAR_MS: i64 = 365 * 86_400_000;
    let mut town = Town::new().await;
    town.people(&["ana", "bob"]);
    town.server.set_clock(YEAR_MS);
    let run = town.starts("ana", "{expires: 10m, not: [requester]}").await;
    town.server.set_clock(-YEAR_MS);
    town.approves("bob", &run).await;

    town.server.pass(599_999).await;
    assert_eq!(town.state(&run).await, "approved");
    town.server.pass(1).await;
    town.server.until(&run, "gate_voided", 1).await;
    assert_eq!(town.state(&run).await, "at_gate");
}

#[test]
fn approvals_survive_a_restart_because_they_are_in_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let (run, secrets) = on_a_runtime(async {
        let mut town = Town::around(TestServer::in_folder(folder.path()).await).await;
        town.people(&["ana", "bob", "cleo"]);
        let run = town.starts("ana", "{min: 2, not: [requester], expires: 1h}").await;
        town.approves("bob", &run).await;
        town.server.close().await;
        (run, town.secrets)
    });

    on_a_runtime(async {
        let town = Town::around(TestServer::in_folder(folder.path()).await).await;
        let town = Town { secrets, ..town };
        let gate = town.gate(&run).await;
        assert_eq!((gate.approvals_remaining, gate.approvals[0].by.as_str()), (1, "human:bob"));
        assert_eq!(town.refused("ana", &run).await, "APPROVER_IS_REQUESTER");
        assert_eq!(remaining(&town.approves("bob", &run).await), 1, "bob counts once");
        assert_eq!(remaining(&town.approves("cleo", &run).await), 0);
        assert!(town.server.findings().await.is_empty());
        town.server.close().await;
    });
}

#[tokio::test]
async fn a_gate_reports_its_requirements() {
    let mut town = Town::new().await;
    town.people(&["ana", "bob"]);
    let run = town.starts("ana", "{approvers: 'role:approver', min: 2, not: requester}").await;
    town.approves("bob", &run).await;

    let job = town.server.job(&run, "switch").await;
    let policy = job.policy.expect("a policy");
    let not: Vec<v1::GateExclusion> = policy.not().collect();
    assert_eq!((policy.min, not), (2, vec![v1::GateExclusion::Requester]));
    assert_eq!(policy.approvers, ["role:approver"]);
    assert_eq!((job.approvals_remaining, job.approvals.len()), (1, 1));
    let roles: Vec<v1::Role> = job.approvals[0].roles().collect();
    assert!(roles.contains(&v1::Role::Approver), "{roles:?}");
    assert!(job.approvals[0].at.is_some());
}
