//! Runs that bring their files along: workers of other machines, in folders of their own.

use std::{fs, path::Path};

use git2::{Index, IndexEntry, IndexTime, Repository, Signature, Time};
use tokio_stream::iter;
use tonic::Status;
use towpath_engine::{ids::Digest, source::BUNDLE_BYTES_MAX};
use towpath_proto::v1::{
    self, blobs_service_client::BlobsServiceClient, put_blob_request::Part, report::Ended,
    source::Origin,
};
use towpath_server::{
    Access, Clock as _, SystemClock,
    auth::{
        roles::Role,
        tokens::{self, NewToken, TokenKind},
    },
};
use towpath_tests::SeenJob as _;
use towpath_tests::{RealWorker, TestServer, code, eventually, file, start_request};
use towpath_wire::dial::dial_tcp;
use towpath_worker::SessionLimits;

const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_000;
const ONE: &str = "stages: [s]\njobs:\n  a: {stage: s, command: cat data.txt}\n";

/// A pack of one commit with these files, and the source that names it.
fn bundle(files: &[(&str, u32, &str)]) -> (v1::Source, Vec<u8>) {
    let scratch = tempfile::tempdir().expect("a folder");
    let repository = Repository::init_bare(scratch.path()).expect("a repository");
    let mut index = Index::new().expect("an index");
    for (path, mode, content) in files {
        let id = repository.blob(content.as_bytes()).expect("a file");
        let (ctime, mtime) = (IndexTime::new(0, 0), IndexTime::new(0, 0));
        let (path, mode) = (path.as_bytes().to_vec(), *mode);
        let (dev, ino, uid, gid, file_size) = (0, 0, 0, 0, 0);
        let (flags, flags_extended) = (0, 0);
        let entry = IndexEntry {
            ctime,
            mtime,
            dev,
            ino,
            mode,
            uid,
            gid,
            file_size,
            id,
            flags,
            flags_extended,
            path,
        };
        index.add(&entry).expect("an entry");
    }
    let tree = index.write_tree_to(&repository).expect("a tree");
    let tree = repository.find_tree(tree).expect("a tree");
    let who = Signature::new("ana", "ana@example.org", &Time::new(0, 0)).expect("somebody");
    let commit = repository.commit(None, &who, &who, "files", &tree, &[]).expect("a commit");
    let mut pack = repository.packbuilder().expect("a pack");
    pack.insert_commit(commit).expect("the commit");
    let mut bytes = git2::Buf::new();
    pack.write_buf(&mut bytes).expect("bytes");
    let origin = Some(Origin::Bundle(blob(&bytes)));
    (v1::Source { commit: commit.to_string(), origin, ..Default::default() }, bytes.to_vec())
}

fn blob(bytes: &[u8]) -> v1::Blob {
    v1::Blob { size: bytes.len() as u64, sha256: Digest::of(bytes).to_string() }
}

fn blobs(server: &TestServer) -> BlobsServiceClient<tonic::transport::Channel> {
    BlobsServiceClient::new(server.channel())
}

/// Sends `bytes` under the name `named`.
async fn put(server: &TestServer, named: v1::Blob, bytes: &[u8]) -> Result<v1::Blob, Status> {
    let content = bytes.chunks(60_000).map(|piece| Part::Content(piece.to_vec().into()));
    let parts: Vec<v1::PutBlobRequest> = std::iter::once(Part::Blob(named))
        .chain(content)
        .map(|part| v1::PutBlobRequest { part: Some(part) })
        .collect();
    Ok(blobs(server).put_blob(iter(parts)).await?.into_inner().blob.unwrap_or_default())
}

async fn has(server: &TestServer, bytes: &[u8]) -> bool {
    let request = v1::FindBlobRequest { blob: Some(blob(bytes)) };
    blobs(server).find_blob(request).await.expect("an answer").into_inner().found
}

/// A request for a run of `yaml` whose files are these; they are on the server already.
async fn request(
    server: &TestServer,
    yaml: &str,
    files: &[(&str, u32, &str)],
) -> v1::StartRunRequest {
    let (source, bytes) = bundle(files);
    put(server, blob(&bytes), &bytes).await.expect("the bundle is kept");
    let mut request = start_request(&file(yaml));
    let pipeline = request.file.as_mut().expect("a file");
    pipeline.folder = "/nowhere/on/any/machine".to_owned();
    pipeline.source = Some(source);
    request
}

async fn begin(server: &TestServer, yaml: &str, files: &[(&str, u32, &str)]) -> String {
    let request = request(server, yaml, files).await;
    server.try_start(request).await.expect("the run begins").id
}

async fn lines(server: &TestServer, run: &str, job: &str) -> Vec<String> {
    let output = server.output(run, job, 0, false).await;
    let lines = towpath_engine::captured_output::lines(&output);
    lines.map(|line| String::from_utf8_lossy(line.expect("a line").bytes).into_owned()).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let entries = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn workers_in_folders_of_their_own_pass_files_on_and_see_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let begin_worker = |name: &str| RealWorker::begin(&server, name, 1, &folder.path().join(name));
    let workers = [begin_worker("one"), begin_worker("two")];
    let meet = folder.path().join("meet").display().to_string();
    let yaml = format!(
        "stages: [s]
jobs:
  make:
    stage: s
    command: sh steps/make.sh && echo spoiled >data.txt
    artifacts: [out]
  b: {{stage: s, needs: [make], command: 'touch {meet}-b; until [ -e {meet}-c ]; do sleep 0.01; done; cat data.txt out/deep/made.txt; echo spoiled >out/deep/made.txt; echo $TOW_ROOT/'}}
  c: {{stage: s, needs: [make], command: 'touch {meet}-c; until [ -e {meet}-b ]; do sleep 0.01; done; cat data.txt out/deep/made.txt'}}
  d: {{stage: s, needs: [b, c], command: 'ls -A'}}
"
    );
    let make = "mkdir -p out/deep; sed s/original/made/ data.txt >out/deep/made.txt\n";
    let files = [("data.txt", FILE, "original\n"), ("steps/make.sh", FILE, make)];

    let run = begin(&server, &yaml, &files).await;

    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(lines(&server, &run, "c").await, ["original", "made"]);
    let seen = lines(&server, &run, "b").await;
    assert_eq!(seen[..2], ["original", "made"]);
    assert!(seen[2].starts_with(&folder.path().display().to_string()), "{seen:?}");
    assert_eq!(lines(&server, &run, "d").await, ["data.txt", "steps"], "only direct needs hand on");
    assert_eq!(server.findings().await, Vec::<String>::new());
    for worker in workers {
        worker.stop().await;
    }
    for name in ["one", "two"] {
        let own = folder.path().join(name).join("attempts");
        assert_eq!(names(&own.join("work")), [""; 0], "folders go when ends are recorded");
        assert_eq!(names(&own.join("sources")).len(), 1, "the bundle is fetched once");
    }
    server.close().await;
}

#[tokio::test]
async fn a_bundle_is_kept_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::in_folder(folder.path()).await;
    let bytes = vec![7; 3_000_000];
    let large = v1::Blob { size: BUNDLE_BYTES_MAX + 1, ..blob(&bytes) };
    let short = v1::Blob { size: 2_999_999, ..blob(&bytes) };
    let long = v1::Blob { size: 3_000_001, ..blob(&bytes) };
    let other = v1::Blob { sha256: Digest::of(b"other").to_string(), ..blob(&bytes) };

    for (named, expected) in [
        (large, "SOURCE_TOO_LARGE"),
        (short, "MESSAGE_INVALID"),
        (long, "MESSAGE_INVALID"),
        (other, "MESSAGE_INVALID"),
    ] {
        let refused = put(&server, named, &bytes).await.expect_err("it is not what it says");
        assert_eq!(code(&refused), expected);
    }
    // A client that dies in the middle: its stream is cut off.
    let (parts, stream) = tokio::sync::mpsc::channel(1);
    let mut client = blobs(&server);
    let sending = tokio::spawn(async move {
        client.put_blob(tokio_stream::wrappers::ReceiverStream::new(stream)).await
    });
    let name = [Part::Blob(blob(&bytes))];
    let pieces = bytes[..2_000_000].chunks(64 * 1024);
    for part in name.into_iter().chain(pieces.map(|piece| Part::Content(piece.to_vec().into()))) {
        parts.send(v1::PutBlobRequest { part: Some(part) }).await.expect("the server listens");
    }
    eventually("half a blob", || !names(&folder.path().join("blobs")).is_empty()).await;
    sending.abort();
    drop(parts);
    eventually("no half blob", || names(&folder.path().join("blobs")).is_empty()).await;
    assert!(!has(&server, &bytes).await);

    let kept = put(&server, blob(&bytes), &bytes).await.expect("it is what it says");
    assert_eq!(kept, blob(&bytes));
    assert!(has(&server, &bytes).await);
    put(&server, blob(&bytes), &bytes).await.expect("twice is no harm");
    server.close().await;
}

#[tokio::test]
async fn a_run_whose_bundle_never_came_does_not_begin() {
    let server = TestServer::in_memory().await;
    let (source, _) = bundle(&[("data.txt", FILE, "x")]);
    let mut request = start_request(&file(ONE));
    request.file.as_mut().expect("a file").source = Some(source);

    let refused = server.try_start(request).await.expect_err("no bundle");

    assert_eq!(code(&refused), "SOURCE_MISSING");
}

#[tokio::test]
async fn a_source_that_leads_out_or_carries_a_password_is_no_source() {
    let server = TestServer::in_memory().await;
    let good = request(&server, ONE, &[("data.txt", FILE, "x")]).await;
    let source = good.file.as_ref().and_then(|file| file.source.clone()).expect("a source");
    let remote = |address: &str| Some(Origin::Remote(address.to_owned()));
    for wrong in [
        v1::Source { folder: "../x".to_owned(), ..source.clone() },
        v1::Source { folder: "/etc".to_owned(), ..source.clone() },
        v1::Source { commit: "--upload-pack=id".to_owned(), ..source.clone() },
        v1::Source { origin: remote("https://ana:secret@example.org/a.git"), ..source.clone() },
        v1::Source { origin: remote("ext::id"), ..source.clone() },
        v1::Source { origin: None, ..source.clone() },
    ] {
        let mut request = good.clone();
        request.file.as_mut().expect("a file").source = Some(wrong);
        let refused = server.try_start(request).await.expect_err("no source");
        assert_eq!(code(&refused), "MESSAGE_INVALID");
    }
    server.try_start(good).await.expect("the right one begins");
}

#[tokio::test]
async fn the_same_request_with_other_files_is_another_request() {
    let server = TestServer::in_memory().await;
    let named = |request| v1::StartRunRequest { idempotency_key: "ci-1".to_owned(), ..request };
    let first = named(request(&server, ONE, &[("data.txt", FILE, "x")]).await);
    let other = named(request(&server, ONE, &[("data.txt", FILE, "y")]).await);

    let run = server.try_start(first.clone()).await.expect("the run begins").id;

    assert_eq!(server.try_start(first).await.expect("the same run").id, run);
    let refused = server.try_start(other).await.expect_err("other files");
    assert_eq!(code(&refused), "IDEMPOTENCY_KEY_REUSED");
}

#[tokio::test]
async fn a_worker_gets_what_its_attempt_needs_and_nothing_else() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x, artifacts: [left.txt]}
  b: {stage: s, command: x, needs: [a]}
  c: {stage: s, command: x, needs: [b]}
";
    let run = begin(&server, yaml, &[("data.txt", FILE, "mine")]).await;
    let (_, secret) = bundle(&[("data.txt", FILE, "of another run")]);
    begin(&server, ONE, &[("data.txt", FILE, "of another run")]).await;
    let bundle = match server.run(&run).await.source.and_then(|source| source.origin) {
        Some(Origin::Bundle(bundle)) => bundle.sha256,
        other => panic!("{other:?}"),
    };
    let fetch = async |of: &v1::Assignment, worker: &str, sha256: &str| {
        let (worker, sha256) = (worker.to_owned(), sha256.to_owned());
        let request = v1::FetchBlobRequest { attempt: of.attempt.clone(), worker, sha256 };
        let stream = blobs(&server).fetch_blob(request).await?.into_inner();
        TestServer::collect(stream).await
    };
    let only = v1::Hello { worker: "w".into(), slots: 1, run: run.clone(), ..Default::default() };
    let mut worker = server.worker_like(only).await;

    let a = worker.take_job("a").await;
    let pack = fetch(&a, "w", &bundle).await.expect("its own bundle");
    assert_eq!(Digest::of(&pack).to_string(), bundle);
    let left = worker.leave(&a, "left.txt", b"left").await;
    let left_by_a = left.blob.clone().expect("a digest").sha256;
    assert!(fetch(&a, "w", &left_by_a).await.is_err(), "it is not there yet");
    let ended = v1::Succeeded { artifacts: vec![left], ..Default::default() };
    worker.report(&a, Ended::Succeeded(ended)).await;
    let b = worker.take_job("b").await;
    assert_eq!(b.files.len(), 1);
    assert_eq!((&*b.files[0].job, &*b.files[0].path), ("a", "left.txt"));
    assert_eq!(fetch(&b, "w", &left_by_a).await.expect("of a need"), b"left");

    let of_another_run = blob(&secret).sha256;
    for (of, name, sha256, why) in [
        (&b, "w", &of_another_run, "another run's bundle"),
        (&b, "v", &bundle, "another worker's attempt"),
        (&a, "w", &bundle, "an attempt that is over"),
    ] {
        let refused = fetch(of, name, sha256).await.expect_err(why);
        assert_eq!(code(&refused), "FORBIDDEN", "{why}");
    }
    worker.report(&b, Ended::Succeeded(v1::Succeeded::default())).await;
    let c = worker.take_job("c").await;
    assert_eq!(c.files, [], "`b` left nothing");
    let refused = fetch(&c, "w", &left_by_a).await.expect_err("not a direct need");
    assert_eq!(code(&refused), "FORBIDDEN");
}

#[tokio::test]
async fn a_job_does_not_begin_when_its_files_cannot_be_put_in_their_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "w", 2, folder.path());
    let leaves = |script: &str, path: &str| {
        format!("{{stage: s, command: '{script}', artifacts: [{path}]}}")
    };
    let outside = folder.path().join("outside").display().to_string();
    let of_two = format!(
        "stages: [s]\njobs:\n  x: {}\n  y: {}\n  b: {{stage: s, needs: [x, y], command: 'true'}}\n",
        leaves("echo x >same", "same"),
        leaves("echo y >same", "same"),
    );
    let behind_a_link = format!(
        "stages: [s]\njobs:\n  x: {}\n  b: {{stage: s, needs: [x], command: 'true'}}\n",
        leaves("rm dir; mkdir dir; echo x >dir/x", "dir/x"),
    );
    let data = ("data.txt", FILE, "x");
    for (yaml, files, job, expected) in [
        (
            &*of_two,
            vec![data],
            "b",
            "the needed jobs `x` and `y` both left `same`, and not the same",
        ),
        (
            &*behind_a_link,
            vec![data, ("dir", LINK, "real"), ("real/y", FILE, "")],
            "b",
            "`dir/x` leads through a link or a file",
        ),
        (ONE, vec![data, ("dir", LINK, &*outside)], "a", "the link `dir` leads out of the folder"),
        (ONE, vec![data, ("dir", LINK, "../..")], "a", "the link `dir` leads out of the folder"),
    ] {
        let run = begin(&server, yaml, &files).await;
        assert_eq!(server.ended(&run).await, "failed");
        let reason = server.job(&run, job).await.reason();
        assert!(reason.starts_with("could not start: "), "{reason}");
        assert!(reason.contains(expected), "{reason}");
    }
    worker.stop().await;
    assert_eq!(names(&folder.path().join("attempts/work")), [""; 0]);
    server.close().await;
}

#[tokio::test]
async fn a_worker_shows_its_token_when_it_fetches_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let strict = Access { strict: true, ..Access::default() };
    let address = server.serve_guarded(strict).await;
    let (name, roles) = ("eu-1".to_owned(), vec![Role::Worker]);
    let kind = TokenKind::Service;
    let new = NewToken { name, kind, roles, expires_at: None, emails: Vec::new() };
    let issued = tokens::issue(&server.server().folder(), new, SystemClock.now()).expect("a token");
    let bearer = format!("Bearer {}", issued.reveal()).parse().expect("a header");
    let channel = dial_tcp(&address).expect("an address");

    let run = begin(&server, ONE, &[("data.txt", FILE, "for eu-1\n")]).await;
    let worker = RealWorker::begin_as(
        channel,
        "eu-1",
        folder.path(),
        SessionLimits::default(),
        Some(bearer),
    );

    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(lines(&server, &run, "a").await, ["for eu-1"]);
    worker.stop().await;
    server.close().await;
}

#[tokio::test]
async fn a_copy_that_was_damaged_on_the_worker_is_fetched_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let worker = RealWorker::begin(&server, "w", 1, folder.path());
    let files = [("data.txt", FILE, "the very words\n")];
    let run = begin(&server, ONE, &files).await;
    assert_eq!(server.ended(&run).await, "succeeded");

    let sources = folder.path().join("attempts/sources");
    let packs = sources.join(&names(&sources)[0]).join("objects/pack");
    for name in names(&packs) {
        let path = packs.join(name);
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "no pack").expect("it can be written");
    }
    let run = begin(&server, ONE, &files).await;

    assert_eq!(server.ended(&run).await, "succeeded");
    assert_eq!(lines(&server, &run, "a").await, ["the very words"]);
    worker.stop().await;
    server.close().await;
}

#[tokio::test]
async fn a_missing_bundle_is_a_finding_and_the_job_says_what_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = TestServer::with_system_clock().await;
    let run = begin(&server, ONE, &[("data.txt", FILE, "x")]).await;
    let blobs = server.server().folder().join("blobs");
    fs::remove_dir_all(blobs.join(&names(&blobs)[0])).expect("the only blob");

    let findings = server.findings().await;
    let worker = RealWorker::begin(&server, "w", 1, folder.path());
    assert_eq!(server.ended(&run).await, "failed");

    assert_eq!(findings.len(), 1);
    assert!(findings[0].contains("its bundle: there is no blob"), "{findings:?}");
    let reason = server.job(&run, "a").await.reason();
    assert!(
        reason.contains("the bundle of the run cannot be fetched: there is no blob"),
        "{reason}"
    );
    worker.stop().await;
    server.close().await;
}
