//! What jobs tell later jobs, print, and leave behind.

use towpath_proto::v1;
use towpath_tests::SeenJob as _;
use towpath_tests::{TestServer, code, file, succeeded, succeeded_with};

#[tokio::test]
async fn an_output_reaches_a_later_job_as_one_shell_word() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x, outputs: [motto]}
  b:
    stage: s
    command: printf %s ${{ needs.a.outputs.motto }}
    needs: [a]
    env:
      MOTTO: 'motto: ${{ needs.a.outputs.motto }}'
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;
    let hostile = "it's $(rm -rf /) `x` \"y\"; exit 1";

    let a = worker.take_job("a").await;
    worker.report(&a, succeeded_with(&[("motto", hostile)])).await;
    let b = worker.take_job("b").await;

    let word = b.script.strip_prefix("printf %s ").expect("the script begins as written");
    assert_eq!(unquoted(word), hostile);
    assert_eq!(b.env["MOTTO"], format!("motto: {hostile}"), "no shell looks at the environment");
    assert_eq!(server.job(&run, "a").await.outputs["motto"], hostile);
}

/// What a POSIX shell makes of `word`, if that is made of single quotes and escapes alone.
fn unquoted(word: &str) -> String {
    let mut text = String::new();
    let mut chars = word.chars();
    while let Some(next) = chars.next() {
        match next {
            '\'' => text.extend(chars.by_ref().take_while(|inner| *inner != '\'')),
            '\\' => text.extend(chars.next()),
            plain => {
                assert!(plain.is_ascii_alphanumeric(), "{plain:?} is outside of quotes");
                text.push(plain);
            }
        }
    }
    text
}

#[tokio::test]
async fn a_placeholder_that_names_nothing_fails_the_job_before_it_starts() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x, outputs: [rows]}
  b: {stage: s, command: 'echo ${{ needs.a.outputs.rows }}', needs: [a]}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;

    worker.succeed("a").await;

    assert_eq!(server.ended(&run).await, "failed");
    let b = server.job(&run, "b").await;
    assert_eq!((b.word().as_str(), b.attempt), ("failed", 0));
    assert!(b.reason().starts_with("could not start: `command`: "), "{}", b.reason());
}

#[tokio::test]
async fn a_condition_that_does_not_hold_skips_the_job_and_the_log_says_what_it_read() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]
jobs:
  a: {stage: s, command: x, outputs: [rows]}
  large: {stage: s, command: x, needs: [a], if: (needs.a.outputs.rows | int) > 1000}
  small: {stage: s, command: x, needs: [a], if: (needs.a.outputs.rows | int) <= 1000}
";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;

    let a = worker.take_job("a").await;
    worker.report(&a, succeeded_with(&[("rows", "12")])).await;
    worker.succeed("small").await;

    assert_eq!(server.ended(&run).await, "succeeded");
    let large = server.job(&run, "large").await;
    assert_eq!((large.word().as_str(), large.reason().as_str()), ("skipped", "condition_false"));
    let decided = server.newest(&run, "condition_evaluated").await;
    assert_eq!(decided["event"]["inputs"]["needs.a.outputs.rows"], "12");
    assert_eq!(server.count(&run, "condition_evaluated").await, 2);
}

#[tokio::test]
async fn an_attempt_that_does_not_exist_has_no_output() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file("stages: [s]\njobs:\n  a: {stage: s, command: x}\n")).await;
    let read = |attempt: u32| {
        let (run, job, mut runs) = (run.clone(), "a".to_owned(), server.runs());
        let request = v1::ReadOutputRequest { run, job, attempt, follow: false };
        async move { runs.read_output(request).await }
    };

    assert_eq!(code(&read(1).await.expect_err("it has not begun")), "ATTEMPT_UNKNOWN");
    server.worker("w", 1).await.succeed("a").await;
    read(1).await.expect("the first attempt");
    let refused = read(2).await.expect_err("there is no second");
    assert_eq!(code(&refused), "ATTEMPT_UNKNOWN");
    assert_eq!(refused.code(), tonic::Code::NotFound);
}

fn report(outputs_bytes: u64, artifacts: Vec<v1::Artifact>) -> (v1::report::Ended, u64) {
    let ended = v1::Succeeded { artifacts, ..Default::default() };
    (v1::report::Ended::Succeeded(ended), outputs_bytes)
}

async fn artifact(server: &TestServer, run: &str, path: &str) -> Result<Vec<u8>, tonic::Status> {
    let (run, job, path) = (run.to_owned(), "a".to_owned(), path.to_owned());
    let request = v1::ReadArtifactRequest { run, job, path };
    TestServer::collect(server.runs().read_artifact(request).await?.into_inner()).await
}

const ONE: &str = "stages: [s]\njobs:\n  a: {stage: s, command: x, artifacts: [report.bin]}\n";

#[tokio::test]
async fn a_file_that_a_job_left_comes_back_byte_for_byte() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;
    let content: Vec<u8> = (0..200_001_u32).map(|n| u8::try_from(n % 251).unwrap_or(0)).collect();

    let a = worker.take_job("a").await;
    let left = worker.leave(&a, "report.bin", &content).await;
    let empty = worker.leave(&a, "empty.txt", b"").await;
    let (ended, printed) = report(0, vec![left.clone(), empty]);
    worker.report_printed(&a, ended, printed).await;

    let kept = server.job(&run, "a").await.artifacts;
    let named = kept[0].blob.clone().expect("a digest");
    assert_eq!((named.size, named.sha256), (200_001, left.blob.expect("a digest").sha256));
    assert_eq!(artifact(&server, &run, "report.bin").await.expect("it is kept"), content);
    assert_eq!(artifact(&server, &run, "empty.txt").await.expect("it is kept"), b"");
    let unknown = artifact(&server, &run, "other").await.expect_err("no such file");
    assert_eq!(code(&unknown), "ARTIFACT_UNKNOWN");
    assert_eq!(server.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn output_can_be_followed_while_the_job_runs_and_read_when_it_has_ended() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;
    worker.print(&a, 0, b"1 o one\n").await;
    let request =
        v1::ReadOutputRequest { run: run.clone(), job: "a".to_owned(), attempt: 0, follow: true };
    let mut stream = server.runs().read_output(request).await.expect("output").into_inner();

    // It arrives while the job still runs.
    let first = tokio_stream::StreamExt::next(&mut stream).await.expect("output").expect("output");
    assert_eq!(&first.content[..], b"1 o one\n");
    worker.print(&a, 8, b"2 e two\n").await;
    let (ended, printed) = report(16, Vec::new());
    worker.report_printed(&a, ended, printed).await;
    let rest = TestServer::collect(stream).await.expect("the rest");

    assert_eq!(rest, b"2 e two\n");
    assert_eq!(server.output(&run, "a", 0, false).await, b"1 o one\n2 e two\n");
    assert_eq!(server.job(&run, "a").await.captured_output.expect("a digest").size, 16);
    assert_eq!(server.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn repeated_output_is_stored_once() {
    let server = TestServer::in_memory().await;
    let run = server.start(&file(ONE)).await;
    let mut worker = server.worker("w", 1).await;
    let a = worker.take_job("a").await;

    worker.print(&a, 0, b"1 o one\n").await;
    worker.print(&a, 0, b"1 o one\n2 o two\n").await;
    worker.print(&a, 8, b"2 o two\n").await;
    let (ended, printed) = report(16, Vec::new());
    worker.report_printed(&a, ended, printed).await;

    assert_eq!(server.output(&run, "a", 0, false).await, b"1 o one\n2 o two\n");
}

#[tokio::test]
async fn the_output_of_an_older_try_can_still_be_read() {
    let server = TestServer::in_memory().await;
    let yaml = "stages: [s]\njobs:\n  a: {stage: s, command: x, retry: {max: 1, backoff: 0s}}\n";
    let run = server.start(&file(yaml)).await;
    let mut worker = server.worker("w", 1).await;

    let first = worker.take_job("a").await;
    worker.print(&first, 0, b"1 o first\n").await;
    worker.report_printed(&first, towpath_tests::failed(1), 10).await;
    server.settle().await;
    let second = worker.take_job("a").await;
    worker.print(&second, 0, b"1 o second\n").await;
    worker.report_printed(&second, succeeded(), 11).await;

    assert_eq!(server.output(&run, "a", 1, false).await, b"1 o first\n");
    assert_eq!(server.output(&run, "a", 2, false).await, b"1 o second\n");
    assert_eq!(server.output(&run, "a", 0, true).await, b"1 o second\n");
}
