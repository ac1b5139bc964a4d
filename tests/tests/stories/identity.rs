//! Who asks, and whether they may: tokens, roles, certificates, and two ends that do not agree
//! whether they speak in the clear.

use std::{fs, path::Path, time::Duration};

use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use towpath_engine::time::Timestamp;
use towpath_proto::streams::Records;
use towpath_proto::v1::{
    self, blobs_service_client::BlobsServiceClient, gates_service_client::GatesServiceClient,
    log_service_client::LogServiceClient, runs_service_client::RunsServiceClient,
};
use towpath_server::{
    Access, Clock as _, ServeTls, SystemClock,
    auth::{
        oidc::OidcSettings,
        pki::{self, Issued, Subject},
        roles::Role,
        tokens::{self, NewToken, TokenKind},
    },
};
use towpath_tests::{RealWorker, ScriptedWorker, TestServer, WAIT_MAX, code, file, start_request};
use towpath_wire::dial::{DialTls, PemPair, dial_tcp, dial_tls};
use towpath_worker::{SessionLimits, WorkerError};

const ONE: &str = "stages: [s]\njobs:\n  a: {stage: s, command: x}\n";
const GATED: &str = "stages: [s]\njobs:\n  a: {stage: s, command: x, when: manual}\n";

fn strict() -> Access {
    Access { strict: true, ..Access::default() }
}

/// Issues a token of `server` that counts from now on for ever; answers its secret.
fn issue(server: &TestServer, name: &str, roles: &[Role]) -> String {
    issue_until(server, name, roles, None)
}

fn issue_until(
    server: &TestServer,
    name: &str,
    roles: &[Role],
    expires_at: Option<Timestamp>,
) -> String {
    let (name, roles) = (name.to_owned(), roles.to_vec());
    let new = NewToken { name, kind: TokenKind::Human, roles, expires_at, emails: Vec::new() };
    let issued = tokens::issue(&server.server().folder(), new, SystemClock.now());
    issued.expect("a token").reveal().to_owned()
}

/// `message` as a request of the holder of `secret`.
fn with<T>(message: T, secret: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !secret.is_empty() {
        let value: MetadataValue<Ascii> = format!("Bearer {secret}").parse().expect("a header");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

async fn runs_of(channel: &Channel, secret: &str) -> Result<usize, Status> {
    let request = with(v1::ListRunsRequest::default(), secret);
    let reply = RunsServiceClient::new(channel.clone()).list_runs(request).await?;
    Ok(reply.into_inner().runs.len())
}

async fn start(channel: &Channel, secret: &str, actor: &str) -> Result<v1::Run, Status> {
    let message = v1::StartRunRequest { actor: actor.to_owned(), ..start_request(&file(GATED)) };
    let started = RunsServiceClient::new(channel.clone()).start_run(with(message, secret)).await?;
    Ok(started.into_inner().run.unwrap_or_default())
}

async fn approve(channel: &Channel, secret: &str, gate: &v1::Gate) -> Result<(), Status> {
    let v1::Gate { run, job, approval_digest, .. } = gate.clone();
    let message = v1::ApproveGateRequest { run, job, approval_digest, ..Default::default() };
    GatesServiceClient::new(channel.clone()).approve_gate(with(message, secret)).await?;
    Ok(())
}

#[tokio::test]
async fn unauthenticated_requests_are_refused() {
    let server = TestServer::with_system_clock().await;
    let channel = dial_tcp(&server.serve_guarded(strict()).await).expect("an address");
    let now = SystemClock.now();
    let good = issue(&server, "ana", &[Role::Viewer]);
    let expired = issue_until(&server, "eve", &[Role::Viewer], Some(Timestamp(now.0 - 1)));

    assert_eq!(runs_of(&channel, &good).await.expect("she may"), 0);
    let longer = format!("{good}0");
    for wrong in ["", "towpath_", "x", &longer, &good[..good.len() - 1], &expired] {
        let refused = runs_of(&channel, wrong).await.expect_err("nobody");
        assert_eq!((refused.code(), &*code(&refused)), (Code::Unauthenticated, "UNAUTHENTICATED"));
    }
    // The owner of the store needs no proof.
    server.start(&file(ONE)).await;
    server.close().await;
}

#[tokio::test]
async fn a_port_asks_for_proof_as_soon_as_there_are_tokens() {
    let server = TestServer::with_system_clock().await;
    let channel = dial_tcp(&server.serve("127.0.0.1:0").await).expect("an address");
    assert_eq!(runs_of(&channel, "").await.expect("anybody may"), 0);

    let good = issue(&server, "ana", &[Role::Viewer]);

    assert_eq!(code(&runs_of(&channel, "").await.expect_err("nobody")), "UNAUTHENTICATED");
    assert_eq!(runs_of(&channel, &good).await.expect("she may"), 0);
    server.close().await;
}

#[tokio::test]
async fn a_revoked_token_ends_what_it_opened() {
    let server = TestServer::with_system_clock().await;
    let channel = dial_tcp(&server.serve_guarded(strict()).await).expect("an address");
    let secret = issue(&server, "ana", &[Role::Viewer]);
    let run = server.start(&file(ONE)).await;
    let request = v1::FollowRequest { run, after: 0, follow: true };
    let mut log = LogServiceClient::new(channel.clone());
    let mut stream =
        Records::new(log.follow(with(request, &secret)).await.expect("she may").into_inner());
    stream.next().await.expect("a record").expect("a record");

    tokens::revoke(&server.server().folder(), "ana").expect("there is one");

    let ended = tokio::time::timeout(WAIT_MAX, async {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return status,
                None => panic!("the stream ended without a word"),
            }
        }
    });
    assert_eq!(code(&ended.await.expect("it ends")), "UNAUTHENTICATED");
    assert_eq!(code(&runs_of(&channel, &secret).await.expect_err("nobody")), "UNAUTHENTICATED");
    server.close().await;
}

#[tokio::test]
async fn everybody_does_what_their_roles_say_and_nothing_else() {
    let server = TestServer::with_system_clock().await;
    let channel = dial_tcp(&server.serve_guarded(strict()).await).expect("an address");
    let operator = issue(&server, "olga", &[Role::Operator]);
    let approver = issue(&server, "ana", &[Role::Approver]);
    let auditor = issue(&server, "ada", &[Role::Auditor]);
    let worker = issue(&server, "eu-1", &[Role::Worker]);
    let run = start(&channel, &operator, "").await.expect("she may");
    assert_eq!(run.requested_by, "human:olga", "the token says who it was");
    let gates = server
        .gates()
        .list_gates(v1::ListGatesRequest { run: run.id.clone(), ..Default::default() })
        .await;
    let gate = gates.expect("gates").into_inner().gates.remove(0);

    for (secret, who) in [(&auditor, "auditor"), (&approver, "approver"), (&worker, "worker")] {
        let refused = start(&channel, secret, "").await.expect_err(who);
        assert_eq!((refused.code(), &*code(&refused)), (Code::PermissionDenied, "FORBIDDEN"));
    }
    for (secret, who) in [(&auditor, "auditor"), (&operator, "operator"), (&worker, "worker")] {
        let refused = approve(&channel, secret, &gate).await.expect_err(who);
        assert_eq!(code(&refused), "FORBIDDEN", "{who}");
        let needed = "ApproveGate: that needs the role approver, and `";
        assert!(refused.message().contains(needed), "{}", refused.message());
        assert!(
            refused.message().ends_with(&format!("has the role {who}")),
            "{}",
            refused.message()
        );
    }
    let message = v1::StartRunRequest {
        gates_preapproved: true,
        actor: String::new(),
        ..start_request(&file(GATED))
    };
    let refused = RunsServiceClient::new(channel.clone()).start_run(with(message, &operator)).await;
    assert_eq!(code(&refused.expect_err("that is an approval")), "FORBIDDEN");
    assert_eq!(runs_of(&channel, &auditor).await.expect("he reads"), 1);
    for (secret, store) in [(&auditor, "memory:"), (&operator, "memory"), (&worker, "memory")] {
        let mut log = LogServiceClient::new(channel.clone());
        let described = log.describe(with(v1::DescribeRequest {}, secret)).await.expect("allowed");
        assert_eq!(described.into_inner().store, store, "the URL is for those who look after it");
    }

    approve(&channel, &approver, &gate).await.expect("she may");
    assert_eq!(server.newest(&run.id, "gate_approved").await["by"], "human:ana");
    server.close().await;
}

#[tokio::test]
async fn an_edit_that_takes_a_gate_away_needs_who_may_open_it() {
    let server = TestServer::with_system_clock().await;
    let channel = dial_tcp(&server.serve_guarded(strict()).await).expect("an address");
    let operator = issue(&server, "olga", &[Role::Operator]);
    let both = issue(&server, "ana", &[Role::Operator, Role::Approver]);
    let run = start(&channel, &operator, "").await.expect("she may").id;
    let resume = async |secret: &str, yaml: &str| {
        let file = start_request(&file(yaml)).file;
        let edit = v1::ResumeRunRequest {
            run: run.clone(),
            file,
            accept_changes: true,
            ..Default::default()
        };
        RunsServiceClient::new(channel.clone()).resume_run(with(edit, secret)).await
    };

    let refused = resume(&operator, ONE).await.expect_err("that opens the gate");
    assert_eq!((refused.code(), &*code(&refused)), (Code::PermissionDenied, "GATE_LIFTED"));
    let edited = GATED.replace("command: x", "command: y");
    resume(&operator, &edited).await.expect("it has its gate");
    resume(&both, ONE).await.expect("she may open it");

    assert_eq!(server.newest(&run, "plan_replaced").await["by"], "human:ana");
    server.close().await;
}

#[tokio::test]
async fn a_token_does_not_speak_for_somebody_else() {
    let server = TestServer::with_system_clock().await;
    let address = server.serve_guarded(strict()).await;
    let channel = dial_tcp(&address).expect("an address");
    let operator = issue(&server, "olga", &[Role::Operator]);

    let refused = start(&channel, &operator, "human:ana").await.expect_err("she is not Ana");
    assert_eq!((refused.code(), &*code(&refused)), (Code::PermissionDenied, "ACTOR_MISMATCH"));
    start(&channel, &operator, "human:olga").await.expect("she is Olga");

    let folder = tempfile::tempdir().expect("a folder");
    let worker = issue(&server, "eu-1", &[Role::Worker]);
    let stay = SessionLimits { reconnect: true, ..SessionLimits::default() };
    let begin = |name: &str| {
        let bearer = format!("Bearer {worker}").parse().expect("a header");
        RealWorker::begin_as(channel.clone(), name, folder.path(), stay.clone(), Some(bearer))
    };
    let Err(WorkerError::Session(refused)) = begin("eu-2").ended().await else {
        panic!("a worker goes by its own name")
    };
    assert_eq!(code(&refused), "WORKER_IDENTITY_MISMATCH");
    // Nor does it fetch in another worker's name.
    let fetch = v1::FetchBlobRequest { worker: "eu-2".to_owned(), ..Default::default() };
    let mut blobs = BlobsServiceClient::new(channel.clone());
    let refused = blobs.fetch_blob(with(fetch, &worker)).await.expect_err("not eu-2");
    assert_eq!(code(&refused), "WORKER_IDENTITY_MISMATCH");
    server.close().await;
}

/// An authority in `folder`, and a certificate of it for a server here.
fn authority(folder: &Path) -> ServeTls {
    pki::init(folder, "test").expect("an authority");
    let hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let issued = pki::issue(folder, &Subject::Server(hosts), pki::DAY).expect("a certificate");
    let client_crl = Some(folder.join(pki::CRL_FILE));
    ServeTls { own: pair(&issued), client_ca: Some(ca(folder)), client_crl }
}

fn ca(folder: &Path) -> Vec<u8> {
    fs::read(folder.join(pki::CA_FILE)).expect("a certificate")
}

fn pair(issued: &Issued) -> PemPair {
    let read = |path| fs::read(path).expect("a file of ours");
    PemPair { certificate: read(&issued.certificate), key: read(&issued.key) }
}

/// What a worker called `name` proves itself with to the authority in `folder`.
fn worker(folder: &Path, name: &str) -> PemPair {
    worker_for(folder, name, pki::DAY)
}

/// The same, good `for_long` from now on.
fn worker_for(folder: &Path, name: &str, for_long: Duration) -> PemPair {
    let subject = Subject::Worker(name.to_owned());
    pair(&pki::issue(folder, &subject, for_long).expect("a certificate"))
}

async fn with_tls(folder: &Path) -> (TestServer, String) {
    let server = TestServer::with_system_clock().await;
    let tls = Some(authority(folder));
    let access = Access { strict: true, tls, ..Access::default() };
    let address = server.serve_guarded(access).await;
    (server, address)
}

fn dial(address: &str, ca: Vec<u8>, own: Option<PemPair>) -> Channel {
    dial_tls(address, &DialTls { ca, own }).expect("an address")
}

async fn connect(channel: Channel, name: &str) -> Result<ScriptedWorker, Status> {
    let hello = v1::Hello { worker: name.to_owned(), slots: 1, ..Default::default() };
    ScriptedWorker::connect(channel, hello).await
}

#[tokio::test]
async fn people_show_tokens_and_workers_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, address) = with_tls(folder.path()).await;
    let person = dial(&address, ca(folder.path()), None);
    let operator = issue(&server, "olga", &[Role::Operator]);
    let one = worker(folder.path(), "eu-1");
    let machine = dial(&address, ca(folder.path()), Some(one));

    start(&person, &operator, "").await.expect("she may");
    assert_eq!(code(&runs_of(&person, "").await.expect_err("nobody")), "UNAUTHENTICATED");
    let refused = runs_of(&machine, "").await.expect_err("a worker works");
    assert_eq!(code(&refused), "FORBIDDEN");
    let Err(refused) = connect(machine.clone(), "eu-2").await else {
        panic!("a worker goes by the name of its certificate")
    };
    assert_eq!(code(&refused), "WORKER_IDENTITY_MISMATCH");
    connect(machine, "eu-1").await.expect("that is its name");
    server.close().await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_proves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = tempfile::tempdir().expect("a folder");
    let (server, address) = with_tls(folder.path()).await;
    authority(other.path());
    let foreign = worker(other.path(), "eu-1");

    // The worker is not known, or the server is not.
    let own_ca = dial(&address, ca(folder.path()), Some(foreign));
    let other_ca = dial(&address, ca(other.path()), None);

    for channel in [own_ca, other_ca] {
        let asked = tokio::time::timeout(WAIT_MAX, runs_of(&channel, ""));
        let refused = asked.await.expect("in time").expect_err("no connection");
        assert_ne!(refused.code(), Code::Unauthenticated, "it did not come so far");
    }
    server.close().await;
}

#[tokio::test]
async fn two_ends_that_do_not_agree_on_tls_say_so_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, address) = with_tls(folder.path()).await;
    let plain_address = server.serve("127.0.0.1:0").await;

    let plain = dial_tcp(&address).expect("an address");
    let tls = dial(&plain_address, ca(folder.path()), None);

    for channel in [plain, tls] {
        let asked = tokio::time::timeout(Duration::from_secs(10), runs_of(&channel, ""));
        let refused = asked.await.expect("in time").expect_err("no connection");
        assert!(!refused.message().is_empty());
        assert_ne!(refused.code(), Code::Ok);
    }
    // Later requests are not affected.
    let good = dial(&address, ca(folder.path()), None);
    assert_eq!(code(&runs_of(&good, "").await.expect_err("nobody")), "UNAUTHENTICATED");
    server.close().await;
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_session_and_opens_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, address) = with_tls(folder.path()).await;
    let (one, two) = (worker(folder.path(), "eu-1"), worker(folder.path(), "eu-2"));
    let first = dial(&address, ca(folder.path()), Some(one));
    let second = dial(&address, ca(folder.path()), Some(two));
    let mut revoked = connect(first.clone(), "eu-1").await.expect("it is welcome");
    let mut other = connect(second.clone(), "eu-2").await.expect("it is welcome");
    let run = server
        .start(&file(
            "stages: [s]\njobs:\n  a: {stage: s, command: x}\n  b: {stage: s, command: x}\n",
        ))
        .await;
    let held = revoked.take().await;

    pki::revoke(folder.path(), "eu-1", SystemClock.now()).expect("it was issued");

    let ended = revoked.refusal().await;
    assert_eq!((ended.code(), &*code(&ended)), (Code::Unauthenticated, "UNAUTHENTICATED"));
    assert!(ended.message().contains("revoked"), "{ended}");
    let refused = connect(first, "eu-1").await.expect_err("over the same connection");
    assert_eq!(code(&refused), "UNAUTHENTICATED");
    assert_eq!(server.count(&run, "job_succeeded").await, 0);
    // Other clients are not affected, and a damaged list makes no revoked certificate valid again.
    let of = other.take().await;
    assert_ne!(of.attempt, held.attempt);
    fs::write(folder.path().join(pki::CRL_FILE), "nothing").expect("a file");
    other.report(&of, towpath_tests::succeeded()).await;
    for gone in ["worker-eu-1.pem", "worker-eu-1.key"] {
        fs::remove_file(folder.path().join(gone)).expect("a file");
    }
    let again = worker(folder.path(), "eu-1");
    let renewed = dial(&address, ca(folder.path()), Some(again));
    connect(renewed, "eu-1").await.expect("a new certificate is good");
    server.close().await;
}

#[tokio::test]
async fn a_certificate_that_expires_ends_its_session_and_opens_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let (server, address) = with_tls(folder.path()).await;
    let short = worker_for(folder.path(), "eu-1", Duration::from_secs(3));
    let channel = dial(&address, ca(folder.path()), Some(short.clone()));
    let mut session = connect(channel.clone(), "eu-1").await.expect("it is welcome");

    let ended = session.refusal().await;

    assert_eq!(code(&ended), "UNAUTHENTICATED");
    assert!(ended.message().contains("expired"), "{ended}");
    assert_eq!(code(&connect(channel, "eu-1").await.expect_err("expired")), "UNAUTHENTICATED");
    // A connection made again does not even come so far.
    let anew = dial(&address, ca(folder.path()), Some(short));
    let asked = tokio::time::timeout(WAIT_MAX, connect(anew, "eu-1"));
    assert!(asked.await.expect("in time").is_err());
    server.start(&file(ONE)).await;
    server.close().await;
}

#[tokio::test]
async fn an_issuer_vouches_for_people_and_its_groups_say_what_they_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let listed = include_str!("../../../server/src/auth/oidc/tests/rsa.json");
    let token = include_str!("../../../server/src/auth/oidc/tests/rsa.jwt").trim();
    let keys = folder.path().join("keys.json");
    fs::write(&keys, listed).expect("a file");
    let server = TestServer::with_system_clock().await;
    let issuer = |group: &str, audience: &str| OidcSettings {
        issuer: "https://id.example".to_owned(),
        audience: audience.to_owned(),
        keys: keys.clone(),
        name_claim: "sub".to_owned(),
        groups_claim: "groups".to_owned(),
        roles: [(group.to_owned(), vec![Role::Operator])].into(),
    };
    let serve = async |oidc| {
        let access = Access { strict: true, oidc: Some(oidc), ..Access::default() };
        dial_tcp(&server.serve_guarded(access).await).expect("an address")
    };
    let channel = serve(issuer("db-team", "towpath")).await;
    let own = issue(&server, "olga", &[Role::Viewer]);

    let run = start(&channel, token, "").await.expect("her group may");
    assert_eq!(run.requested_by, "human:ana");
    assert_eq!(runs_of(&channel, &own).await.expect("tokens of the store count as well"), 1);
    let stranger = serve(issuer("others", "towpath")).await;
    assert_eq!(code(&start(&stranger, token, "").await.expect_err("no role")), "FORBIDDEN");
    let other = serve(issuer("db-team", "others")).await;
    assert_eq!(code(&start(&other, token, "").await.expect_err("not for us")), "UNAUTHENTICATED");

    // A stream that is open ends when the issuer withdraws the key.
    let request = v1::FollowRequest { run: run.id.clone(), after: 0, follow: true };
    let mut log = LogServiceClient::new(channel.clone());
    let mut stream =
        Records::new(log.follow(with(request, token)).await.expect("she may").into_inner());
    stream.next().await.expect("a record").expect("a record");
    fs::write(&keys, listed.replace("\"rsa\"", "\"next\"")).expect("a file");
    let ended = async {
        loop {
            if let Some(Err(status)) = stream.next().await {
                return status;
            }
        }
    };
    let ended = tokio::time::timeout(WAIT_MAX, ended).await.expect("it ends");
    assert_eq!(code(&ended), "UNAUTHENTICATED");
    assert_eq!(code(&runs_of(&channel, token).await.expect_err("no key")), "UNAUTHENTICATED");
    server.close().await;
}
