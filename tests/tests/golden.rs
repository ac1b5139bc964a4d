//! The bytes of every kind of event, for ever: what this version writes, and what any version to
//! come must still read. The files were written once; nothing here writes them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use towpath_engine::{
    codec::{decode, encode},
    event::{Fact, FailureCause, RunEvent},
    ids::{Actor, Blob},
    settings::SettingsEvent,
    source::{Origin, Source},
    test_events::one_of_each_kind,
    time::Timestamp,
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/v1")
}

/// The test_events as facts, by kind.
fn test_events() -> BTreeMap<String, Fact> {
    let fact = |event| Fact { at: Timestamp(1_763_715_723_007), by: Actor::human("ana"), event };
    let facts = one_of_each_kind().into_iter().map(fact);
    facts.map(|fact| (fact.event.kind().to_owned(), fact)).collect()
}

/// The golden files by kind. Each ends with a line end that is not part of the record.
fn golden() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder()).expect("the golden files are there");
    let files = entries.map(|entry| entry.expect("a folder can be listed").path());
    files
        .map(|path| {
            let kind = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            assert_eq!(path.extension().and_then(|end| end.to_str()), Some("json"), "{path:?}");
            let mut bytes = fs::read(&path).expect("a golden file can be read");
            assert_eq!(bytes.pop(), Some(b'\n'), "{path:?} ends with a line end");
            (kind, bytes)
        })
        .collect()
}

#[test]
fn every_kind_has_its_bytes_and_every_file_its_kind() {
    let (test_events, golden) = (test_events(), golden());

    let kinds: Vec<&String> = test_events.keys().collect();
    let files: Vec<&String> = golden.keys().collect();

    assert_eq!(kinds, files);
}

#[test]
fn every_kind_is_written_as_ever() {
    let golden = golden();
    for (kind, fact) in test_events() {
        let Some(expected) = golden.get(&kind) else { continue };
        let written = String::from_utf8(encode(&fact).expect("it fits a record")).expect("text");
        assert_eq!(written, String::from_utf8_lossy(expected), "the bytes of `{kind}` differ");
    }
}

#[test]
fn old_bytes_mean_what_they_meant() {
    let test_events = test_events();
    for (kind, bytes) in golden() {
        let fact = decode(&bytes).unwrap_or_else(|error| panic!("`{kind}`: {error}"));
        assert_eq!(Some(&fact), test_events.get(&kind), "`{kind}` means something else now");
    }
}

#[test]
fn the_bytes_of_settings_are_written_as_ever() {
    let worker = || "eu/1: ü".into();
    let events = [
        SettingsEvent::WorkerDrained { worker: worker() },
        SettingsEvent::WorkerResumed { worker: worker() },
    ];
    let folder = folder().with_file_name("v1-settings");
    assert_eq!(fs::read_dir(&folder).expect("the golden files").count(), events.len());
    for event in events {
        let kind = towpath_engine::aggregate::Event::kind(&event);
        let fact = Fact { at: Timestamp(1_763_715_723_007), by: Actor::human("ana"), event };
        let bytes = fs::read(folder.join(format!("{kind}.json"))).expect("a golden file");
        let bytes = bytes.strip_suffix(b"\n").expect("a line end");
        assert_eq!(decode::<SettingsEvent>(bytes).expect("an event"), fact);
        assert_eq!(encode(&fact).expect("it fits a record"), bytes, "the bytes of `{kind}`");
    }
}

#[test]
fn the_bytes_of_a_run_with_files_of_its_own_are_written_as_ever() {
    // Fields that came later: a kind has one file, and these bytes are beside it.
    let text = fs::read_to_string(folder().with_file_name("v1-source.jsonl")).expect("the bytes");
    let facts: Vec<Fact> =
        text.lines().map(|line| decode(line.as_bytes()).expect("an event")).collect();

    let sources = facts.iter().map(|fact| {
        if let RunEvent::RunCreated { source, .. } | RunEvent::PlanReplaced { source, .. } =
            &fact.event
        {
            source
        } else {
            panic!("{fact:?}")
        }
    });
    let expected = [
        Source {
            commit: "76a4a20c7e6acc38ccb2b134521f5f72eaefc6dc".to_owned(),
            origin: Origin::Bundle(Blob::of(b"pack")),
            folder: "db/shop".to_owned(),
            parent: Some("71d284d4b57ce5a25696cd9a4f1196b8c4bd0c25".to_owned()),
            dirty: true,
        },
        Source {
            commit: "71d284d4b57ce5a25696cd9a4f1196b8c4bd0c25".to_owned(),
            origin: Origin::Remote("https://example.org/shop.git".to_owned()),
            folder: String::new(),
            parent: None,
            dirty: false,
        },
    ];
    assert!(sources.eq(expected.map(Some).iter()));
    for (line, fact) in text.lines().zip(&facts) {
        assert_eq!(String::from_utf8(encode(fact).expect("it fits a record")).as_deref(), Ok(line));
    }
}

#[test]
fn the_bytes_of_long_inputs_and_invalid_reports_are_written_as_ever() {
    // A field and a cause that came later: a kind has one file, and these bytes are beside it.
    let text = fs::read_to_string(folder().with_file_name("v1-failures.jsonl")).expect("the bytes");
    let facts: Vec<Fact> =
        text.lines().map(|line| decode(line.as_bytes()).expect("an event")).collect();

    let [RunEvent::ConditionEvaluated { inputs, long_inputs, .. }, failed] =
        [&facts[0].event, &facts[1].event]
    else {
        panic!("{facts:?}")
    };
    assert_eq!(inputs["needs.check.outputs.rows"], "12");
    assert_eq!(long_inputs["needs.check.outputs.report"], Blob::of(b"3 o done\n"));
    let why = "the output `rows` is too long".to_owned();
    let RunEvent::JobFailed { cause, .. } = failed else { panic!("{failed:?}") };
    assert_eq!(*cause, FailureCause::ReportInvalid(why));
    for (line, fact) in text.lines().zip(&facts) {
        assert_eq!(String::from_utf8(encode(fact).expect("it fits a record")).as_deref(), Ok(line));
    }
}

#[test]
fn a_run_of_four_eyes_replays_to_the_same_state() {
    // Every field that came with policies at gates: who asked, authors, approvals that expire, one
    // of them in advance, and one that was void because the plan was replaced.
    let text = fs::read(folder().with_file_name("v1-four-eyes.jsonl")).expect("the golden run");
    let facts: Vec<Fact> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| decode(line).expect("an event"))
        .collect();

    let run = towpath_engine::run::Run::replay(&facts).expect("it can still be replayed");

    let kinds: Vec<&str> = facts.iter().map(|fact| fact.event.kind()).collect();
    assert_eq!(
        kinds[5..],
        [
            "gate_reached",
            "gate_approved",
            "gate_voided",
            "plan_replaced",
            "jobs_planned",
            "run_started",
            "gate_reached",
            "gate_approved",
            "gate_approved",
        ]
    );
    let gate = run.job("switch").expect("the gate");
    assert_eq!(gate.state.word(), "approved");
    let given: Vec<String> = gate.approvals.iter().map(|given| given.by.to_string()).collect();
    assert_eq!(
        (given, gate.approvals_remaining()),
        (vec!["human:bob".to_owned(), "human:cleo".to_owned()], 0)
    );
    let header = run.header().expect("a header");
    assert_eq!(header.requester.emails, ["ana@example.org"]);
    assert_eq!(header.authors.as_ref().expect("authors").emails, ["eve@example.org"]);
    assert_eq!(again(&facts), String::from_utf8(text), "every byte is as it was");
}

fn again(facts: &[Fact]) -> Result<String, std::string::FromUtf8Error> {
    let lines = facts.iter().flat_map(|fact| {
        let mut line = encode(fact).expect("it fits a record");
        line.push(b'\n');
        line
    });
    String::from_utf8(lines.collect())
}

#[test]
fn a_run_of_old_bytes_replays_to_the_same_state() {
    // One stream, as an early version wrote it: a gate, a retry, a skip, a resume.
    let text = fs::read(folder().with_file_name("v1-run.jsonl")).expect("the golden run");
    let facts: Vec<Fact> = text
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| decode(line).expect("an event"))
        .collect();

    let run = towpath_engine::run::Run::replay(&facts).expect("it can still be replayed");

    assert_eq!(facts.len(), 23);
    assert_eq!(run.phase().word(), "succeeded");
    let states: Vec<String> = run
        .jobs()
        .iter()
        .map(|job| format!("{} {} {}", job.plan.name, job.state.word(), job.attempt))
        .collect();
    assert_eq!(states, ["a succeeded 3", "b succeeded 1", "c skipped 0", "switch succeeded 1"]);
    assert_eq!(again(&facts), String::from_utf8(text), "every byte is as it was");
}
