//! What a worker does, as inputs and effects in words.

mod connection;

use towpath_engine::{event::FailureCause, ids::Digest};

use super::*;
use crate::ArtifactFile;

const LEASE: Duration = Duration::from_secs(30);

/// A worker whose clock the test moves.
struct Fixture {
    protocol: Protocol<&'static str>,
    now: Duration,
}

fn settings() -> Settings {
    Settings {
        slots: 2,
        jobs_max: None,
        reconnect: true,
        idle: None,
        report_within: None,
        answer_within: ANSWER_WITHIN,
    }
}

/// `job/attempt`, of the one run.
fn id(name: &str) -> AttemptId {
    let (job, attempt) = name.split_once('/').unwrap();
    AttemptId { run: "r".into(), job: job.into(), attempt: Attempt(attempt.parse().unwrap()) }
}

fn name(attempt: &AttemptId) -> String {
    format!("{}/{}", attempt.job, attempt.attempt)
}

fn names<'a>(all: impl IntoIterator<Item = &'a AttemptId>) -> String {
    all.into_iter().map(name).collect::<Vec<_>>().join(" ")
}

fn succeeded(files: &[(&str, u64)]) -> Adopted {
    let file = |(path, size): &(&str, u64)| ArtifactFile {
        path: (*path).to_owned(),
        absolute: format!("/{path}").into(),
        size: *size,
        sha256: Digest::of(b""),
    };
    let artifacts = files.iter().map(file).collect();
    Adopted::Ended(Ended::Succeeded { ran_ms: 1, outputs: BTreeMap::new(), artifacts })
}

fn words(outcome: &Adopted) -> String {
    match outcome {
        Adopted::Ended(Ended::Succeeded { .. }) => "succeeded".to_owned(),
        Adopted::Ended(Ended::Failed { cause, .. }) => format!("failed: {cause}"),
        Adopted::Ended(Ended::Cancelled { .. }) => "cancelled".to_owned(),
        Adopted::Lost(reason) => format!("lost: {reason}"),
        Adopted::NeverStarted => "never started".to_owned(),
    }
}

fn effect(effect: &Effect<&'static str>) -> String {
    match effect {
        Effect::Connect { connection, greeting } => {
            let Greeting { held, jobs_max, draining } = greeting;
            let max = jobs_max.map(|max| format!(" max {max}")).unwrap_or_default();
            let drain = if *draining { " draining" } else { "" };
            format!("connect {} [{}]{max}{drain}", connection.0, names(held))
        }
        Effect::Disconnect { connection } => format!("disconnect {}", connection.0),
        Effect::Begin { attempt, job } => format!("begin {} {job}", name(attempt)),
        Effect::Adopt { attempt, output_bytes } => {
            format!("adopt {} {output_bytes}", name(attempt))
        }
        Effect::Cancel { attempt } => format!("cancel {}", name(attempt)),
        Effect::Forget { attempt, failed: true } => format!("forget failed {}", name(attempt)),
        Effect::Forget { attempt, failed: false } => format!("forget {}", name(attempt)),
        Effect::CheckDisk => "check disk".to_owned(),
        Effect::Notice(Notice::Connected { held }) => format!("connected {held}"),
        Effect::Notice(Notice::Disconnected(outage)) => format!("disconnected: {outage:?}"),
        Effect::Notice(Notice::Paused { .. }) => "paused".to_owned(),
        Effect::Notice(Notice::Resumed) => "resumed".to_owned(),
        Effect::Stop(reason) => format!("stop {reason:?}"),
    }
}

fn message(message: &Message) -> String {
    match message {
        Message::Heartbeat => "heartbeat".to_owned(),
        Message::Drain => "drain".to_owned(),
        Message::Goodbye => "goodbye".to_owned(),
        Message::Part { attempt, part: Part::Output { offset, length } } => {
            format!("output {} {offset}+{length}", name(attempt))
        }
        Message::Part { attempt, part: Part::Artifact { file, offset, length } } => {
            format!("file {} {} {offset}+{length}", name(attempt), file.path)
        }
        Message::Report { attempt, outcome, output_bytes } => {
            format!("report {} {} {output_bytes}", name(attempt), words(outcome))
        }
    }
}

impl Fixture {
    fn new(settings: Settings, found: &[&str]) -> Self {
        let found = found.iter().map(|found| id(found));
        Self { protocol: Protocol::new(settings, found, 7), now: Duration::ZERO }
    }

    /// A worker whose first session is open.
    fn open(settings: Settings) -> Self {
        let mut fixture = Self::new(settings, &[]);
        fixture.tick();
        fixture.welcome(1, &[]);
        assert_eq!(fixture.sent(), ["heartbeat"]);
        fixture
    }

    fn on(&mut self, input: Input<&'static str>) -> Vec<String> {
        let mut effects = Vec::new();
        self.protocol.on(input, self.now, &mut effects);
        effects.iter().map(effect).collect()
    }

    fn tick(&mut self) -> Vec<String> {
        self.on(Input::Tick)
    }

    /// Lets time pass, as long as nothing is due before.
    fn pass(&mut self, millis: u64) -> Vec<String> {
        let until = self.now + Duration::from_millis(millis);
        let mut done = Vec::new();
        while let Some(wake) = self.protocol.next_wake().filter(|wake| *wake <= until) {
            assert!(wake >= self.now);
            self.now = wake;
            done.extend(self.tick());
            let next = self.protocol.next_wake();
            assert!(next.is_none_or(|next| next > self.now), "it wakes at once again: {done:?}");
        }
        self.now = until;
        done
    }

    /// What is sent, as long as the connection takes it.
    fn sent(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.send_next(|_| true)).collect()
    }

    /// What is sent next. A part is read at once.
    fn send_next(&mut self, may: impl Fn(UploadKind) -> bool) -> Option<String> {
        let next = self.protocol.next_control().or_else(|| self.protocol.next_upload(may))?;
        if let Message::Part { attempt, .. } = &next {
            self.protocol.part_sent(attempt);
        }
        Some(message(&next))
    }

    fn welcome(&mut self, connection: u64, held: &[(&str, u64)]) -> Vec<String> {
        let held = held.iter().map(|(attempt, bytes)| (id(attempt), *bytes)).collect();
        self.on(Input::Welcome { connection: ConnectionId(connection), held, lease: LEASE })
    }

    fn assign(&mut self, connection: u64, attempt: &str) -> Vec<String> {
        let connection = ConnectionId(connection);
        self.on(Input::Assigned { connection, attempt: id(attempt), job: "x" })
    }

    fn cancel(&mut self, connection: u64, attempt: &str) -> Vec<String> {
        let connection = ConnectionId(connection);
        self.on(Input::CancelRequested { connection, attempt: id(attempt) })
    }

    fn recorded(&mut self, connection: u64, attempt: &str) -> Vec<String> {
        let connection = ConnectionId(connection);
        self.on(Input::Recorded { connection, attempt: id(attempt) })
    }

    fn disconnect(&mut self, connection: u64, cause: Cause) -> Vec<String> {
        self.on(Input::Disconnected { connection: ConnectionId(connection), cause })
    }

    fn grow(&mut self, attempt: &str, length: u64) {
        assert_eq!(self.on(Input::OutputGrew { attempt: id(attempt), length }), [""; 0]);
    }

    fn end(&mut self, attempt: &str, outcome: Adopted) -> Vec<String> {
        self.on(Input::Ended { attempt: id(attempt), outcome, incomplete: None })
    }

    fn clear(&mut self, attempt: &str) -> Vec<String> {
        self.on(Input::Cleared { attempt: id(attempt) })
    }
}

#[test]
fn what_waits_to_be_read_holds_up_only_its_own_attempt() {
    let mut fixture = Fixture::open(settings());
    for attempt in ["a/1", "b/1"] {
        fixture.assign(1, attempt);
        fixture.grow(attempt, 10);
        fixture.end(attempt, succeeded(&[("x", 5)]));
    }
    let next = |fixture: &mut Fixture| fixture.protocol.next_upload(|_| true);
    let read = next(&mut fixture).unwrap();
    assert_eq!(message(&read), "output a/1 0+10");

    // While that is read, and for as long as no file may be read: the other's output alone.
    assert_eq!(message(&next(&mut fixture).unwrap()), "output b/1 0+10");
    fixture.protocol.part_sent(&id("b/1"));
    let no_files = |kind| kind != UploadKind::File;
    assert!(!fixture.protocol.has_upload(no_files));
    assert_eq!(fixture.protocol.next_upload(no_files), None);
    fixture.assign(1, "c/1");
    fixture.end("c/1", succeeded(&[]));
    assert_eq!(fixture.send_next(no_files).unwrap(), "report c/1 succeeded 0");

    // A session that ends gives up what is being read.
    fixture.disconnect(1, Cause::Lost);
    fixture.pass(10_000);
    fixture.welcome(2, &[("a/1", 0), ("b/1", 10)]);
    let sent = ["heartbeat", "file b/1 x 0+5", "output a/1 0+10", "report b/1 succeeded 10"];
    let mut all = fixture.sent();
    all.sort();
    assert_eq!(all.len(), 6, "{all:?}");
    assert!(sent.iter().all(|one| all.iter().any(|other| other == one)), "{all:?}");
}

#[test]
fn a_job_is_run_reported_and_forgotten_once_its_end_is_recorded() {
    let mut fixture = Fixture::new(settings(), &[]);
    assert_eq!(fixture.tick(), ["connect 1 []"]);
    assert_eq!(fixture.welcome(1, &[]), ["connected 0"]);

    assert_eq!(fixture.assign(1, "a/1"), ["begin a/1 x"]);
    fixture.grow("a/1", 100_000);
    assert_eq!(fixture.sent(), ["heartbeat", "output a/1 0+65536", "output a/1 65536+34464"]);
    fixture.grow("a/1", 100_010);
    fixture.end("a/1", succeeded(&[("x", 70_000), ("empty", 0)]));

    assert_eq!(
        fixture.sent(),
        [
            "output a/1 100000+10",
            "file a/1 x 0+65536",
            "file a/1 x 65536+4464",
            "file a/1 empty 0+0",
            "report a/1 succeeded 100010"
        ]
    );
    assert_eq!(fixture.recorded(1, "a/1"), ["forget a/1"]);
    assert_eq!(fixture.clear("a/1"), [""; 0]);
    assert_eq!(fixture.protocol.held(), 0);
    assert_eq!(words(fixture.protocol.last().unwrap()), "succeeded");
    let failed = Ended::Failed { cause: FailureCause::ExitCode(3), ran_ms: 1 };
    fixture.assign(1, "a/2");
    fixture.end("a/2", Adopted::Ended(failed));
    assert_eq!(fixture.recorded(1, "a/2"), ["forget failed a/2"]);
}

#[test]
fn a_report_is_repeated_from_where_the_server_is_until_it_is_recorded() {
    for known in [0, 40, 100] {
        let mut fixture = Fixture::open(settings());
        fixture.assign(1, "a/1");
        fixture.grow("a/1", 100);
        fixture.end("a/1", succeeded(&[("x", 5)]));
        assert_eq!(fixture.sent().len(), 3);

        assert_eq!(fixture.disconnect(1, Cause::Lost), ["disconnected: Ended"]);
        assert_eq!(fixture.recorded(1, "a/1"), [""; 0], "that connection has ended");
        assert_eq!(fixture.sent(), [""; 0]);
        assert_eq!(fixture.pass(1_000), ["connect 2 [a/1]"]);
        fixture.welcome(2, &[("a/1", known)]);

        let mut again = vec!["heartbeat".to_owned()];
        again.extend((known < 100).then(|| format!("output a/1 {known}+{}", 100 - known)));
        again.extend(["file a/1 x 0+5".to_owned(), "report a/1 succeeded 100".to_owned()]);
        assert_eq!(fixture.sent(), again);
        assert_eq!(fixture.recorded(2, "a/1"), ["forget a/1"]);
    }
}

#[test]
fn what_a_welcome_does_not_confirm_is_ended_and_sends_nothing_more() {
    let mut fixture = Fixture::open(settings());
    fixture.assign(1, "a/1");
    fixture.assign(1, "b/1");
    fixture.end("b/1", succeeded(&[]));
    fixture.disconnect(1, Cause::Lost);
    assert_eq!(fixture.pass(1_000), ["connect 2 [a/1 b/1]"]);

    assert_eq!(fixture.welcome(2, &[]), ["cancel a/1", "forget b/1", "connected 0"]);
    fixture.grow("a/1", 10);
    assert_eq!(fixture.sent(), ["heartbeat"]);
    assert_eq!(fixture.cancel(2, "a/1"), [""; 0]);
    fixture.disconnect(2, Cause::Lost);
    assert_eq!(fixture.pass(1_000), ["connect 3 []"], "what is void is not named");
    fixture.welcome(3, &[]);
    assert_eq!(fixture.end("a/1", succeeded(&[])), ["forget a/1"]);
    assert_eq!(fixture.sent(), ["heartbeat"]);
}

#[test]
fn a_job_never_runs_beside_its_own_past() {
    let mut fixture = Fixture::new(settings(), &["a/1"]);
    assert_eq!(fixture.tick(), ["connect 1 [a/1]"]);
    assert_eq!(fixture.welcome(1, &[]), ["adopt a/1 0", "cancel a/1", "connected 0"]);
    assert_eq!(fixture.assign(1, "a/2"), [""; 0]);
    assert_eq!(fixture.assign(1, "b/1"), ["begin b/1 x"], "another job does not wait");

    assert_eq!(fixture.end("a/1", succeeded(&[])), ["forget a/1", "begin a/2 x"]);

    // Even if the server did not say that the older one is no longer valid.
    fixture.end("b/1", succeeded(&[]));
    assert_eq!(fixture.assign(1, "a/3"), ["cancel a/2"]);
    assert_eq!(fixture.cancel(1, "a/3"), [""; 0], "it has not begun");
    assert_eq!(fixture.sent()[2..], ["report a/3 cancelled 0"]);
    assert_eq!(fixture.end("a/2", succeeded(&[])), ["forget a/2"]);
    // One that has ended is only waiting for its receipt: its successor does not wait.
    fixture.assign(1, "c/1");
    fixture.end("c/1", succeeded(&[]));
    assert_eq!(fixture.assign(1, "c/2"), ["begin c/2 x"]);
}

#[test]
fn what_an_earlier_process_left_is_adopted_if_it_counts() {
    let mut fixture = Fixture::new(settings(), &["a/1", "b/1"]);
    fixture.on(Input::KillRequested);
    assert_eq!(
        fixture.welcome(1, &[("b/1", 70), ("x/1", 5)]),
        ["adopt a/1 0", "cancel a/1", "adopt b/1 70", "cancel b/1", "connected 1"]
    );
    fixture.grow("b/1", 80);
    assert_eq!(fixture.sent(), ["heartbeat", "output b/1 70+10"]);
    fixture.end("b/1", Adopted::Lost("why".to_owned()));
    assert_eq!(fixture.sent(), ["report b/1 lost: why 80"]);
}

#[test]
fn what_counts_no_more_is_not_forgotten_while_it_runs() {
    let mut fixture = Fixture::open(settings());
    fixture.assign(1, "a/1");
    assert_eq!(fixture.recorded(1, "a/1"), ["cancel a/1"]);
    assert_eq!(fixture.recorded(1, "a/1"), [""; 0]);
    assert_eq!(fixture.end("a/1", succeeded(&[])), ["forget a/1"]);
    assert_eq!(fixture.sent(), [""; 0]);
}

#[test]
fn no_more_run_than_there_are_slots() {
    let mut fixture = Fixture::open(settings());
    for attempt in ["a/1", "b/1", "b/1", "c/1"] {
        fixture.assign(1, attempt);
    }
    assert_eq!(fixture.sent(), ["report c/1 lost: its worker has only 2 slots 0"]);
    assert_eq!(fixture.recorded(1, "c/1"), ["forget c/1"]);
    fixture.end("a/1", succeeded(&[]));
    assert_eq!(fixture.assign(1, "d/1"), ["begin d/1 x"], "before the receipt of the one before");
}

#[test]
fn uploads_take_turns() {
    let mut fixture = Fixture::open(settings());
    fixture.assign(1, "a/1");
    fixture.assign(1, "b/1");
    fixture.grow("a/1", 150_000);
    fixture.end("b/1", succeeded(&[]));
    let sent = fixture.sent();
    assert!(sent[1].starts_with("report b/1"), "{sent:?}");
    assert_eq!(sent.len(), 4);
}

#[test]
fn a_success_does_not_hide_that_something_cannot_be_read() {
    let mut fixture = Fixture::open(settings());
    fixture.assign(1, "a/1");
    fixture.grow("a/1", 100);
    assert_eq!(fixture.sent(), ["output a/1 0+100"]);
    let part = Part::Output { offset: 0, length: 100 };
    let unreadable = |part| Input::Unreadable { attempt: id("a/1"), part, reason: "why".into() };
    fixture.on(unreadable(part));
    fixture.grow("a/1", 200);
    fixture.end("a/1", succeeded(&[("x", 1)]));
    let report = "report a/1 failed: ";
    let sent = fixture.sent();
    assert!(sent[0].starts_with(report) && sent[0].ends_with("is not complete: why 0"), "{sent:?}");

    fixture.disconnect(1, Cause::Lost);
    fixture.pass(1_000);
    fixture.welcome(2, &[("a/1", 0)]);
    let tried: Vec<String> = fixture.sent().drain(1..3).collect();
    assert_eq!(tried, ["output a/1 0+200", "file a/1 x 0+1"], "it is tried again");

    let mut fixture = Fixture::open(settings());
    fixture.assign(1, "a/1");
    let incomplete = Some("too long".to_owned());
    fixture.on(Input::Ended { attempt: id("a/1"), outcome: succeeded(&[("x", 1)]), incomplete });
    let sent = fixture.sent();
    assert!(sent[0].contains("its output is not complete: too long"), "{sent:?}");
}
