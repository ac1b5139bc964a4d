//! What a client that was generated earlier relies on, one line each, in `contract.txt`. A line that
//! is not true any more breaks that client: buf's rules of the categories FILE and WIRE come down to
//! that, because each line holds all that they compare.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, field_descriptor_proto::Label,
};

use super::ours;

const RENEW: &str = "SNAPSHOTS=overwrite cargo test -p towpath-proto --test contract";

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("contract.txt")
}

/// Everything that clients rely on, sorted.
fn facts(files: &[FileDescriptorProto]) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for file in files {
        let (path, package) = (file.name(), file.package());
        facts.insert(format!("file {path} package {package} {}", file.syntax()));
        for message in &file.message_type {
            message_facts(path, package, message, &mut facts);
        }
        for one in &file.enum_type {
            enum_facts(path, package, one, &mut facts);
        }
        for service in &file.service {
            let name = format!("{package}.{}", service.name());
            facts.insert(format!("service {name} in {path}"));
            for rpc in &service.method {
                let stream = |on: bool| if on { "stream " } else { "" };
                facts.insert(format!(
                    "rpc {name}/{} ({}{}) returns ({}{})",
                    rpc.name(),
                    stream(rpc.client_streaming()),
                    rpc.input_type(),
                    stream(rpc.server_streaming()),
                    rpc.output_type(),
                ));
            }
        }
    }
    facts
}

fn message_facts(path: &str, outer: &str, message: &DescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{outer}.{}", message.name());
    facts.insert(format!("message {name} in {path}"));
    for field in &message.field {
        let label = match field.label() {
            Label::Repeated => "repeated ",
            Label::Required => "required ",
            Label::Optional if field.proto3_optional() => "optional ",
            Label::Optional => "",
        };
        let kind = format!("{:?}", field.r#type()).to_ascii_lowercase();
        let kind = if field.type_name().is_empty() { kind } else { field.type_name().to_owned() };
        let oneof = field.oneof_index.filter(|_| !field.proto3_optional());
        let oneof = oneof.and_then(|at| message.oneof_decl.get(usize::try_from(at).ok()?));
        let oneof = oneof.map(|oneof| format!(" in oneof {}", oneof.name())).unwrap_or_default();
        let (number, field_name) = (field.number(), field.name());
        facts.insert(format!("field {name} {number:>3} {field_name}: {label}{kind}{oneof}"));
    }
    for range in &message.reserved_range {
        facts.insert(format!("reserved {name} {}..{}", range.start(), range.end()));
    }
    for reserved in &message.reserved_name {
        facts.insert(format!("reserved {name} {reserved}"));
    }
    for nested in &message.nested_type {
        message_facts(path, &name, nested, facts);
    }
    for nested in &message.enum_type {
        enum_facts(path, &name, nested, facts);
    }
}

fn enum_facts(path: &str, outer: &str, one: &EnumDescriptorProto, facts: &mut BTreeSet<String>) {
    let name = format!("{outer}.{}", one.name());
    facts.insert(format!("enum {name} in {path}"));
    for value in &one.value {
        facts.insert(format!("value {name} {:>3} {}", value.number(), value.name()));
    }
}

fn recorded() -> BTreeSet<String> {
    let text = fs::read_to_string(golden()).unwrap_or_default();
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// What is recorded and not true any more.
fn broken(recorded: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    recorded.difference(now).cloned().collect()
}

#[test]
fn nothing_that_clients_rely_on_has_changed() {
    let broken = broken(&recorded(), &facts(&ours()));
    assert!(
        broken.is_empty(),
        "clients that were generated earlier break:\n  {}\n\
         Add beside what there is instead of changing it. For a break that is decided, delete these \
         lines of proto/contract.txt by hand, say why on a decision page, and then run: {RENEW}",
        broken.join("\n  ")
    );
}

/// What is not recorded is not kept from being broken.
#[test]
fn what_was_added_is_recorded() {
    let (recorded, now) = (recorded(), facts(&ours()));
    let added: Vec<&String> = now.difference(&recorded).collect();
    if added.is_empty() {
        return;
    }
    if std::env::var("SNAPSHOTS").is_ok_and(|value| value == "overwrite") {
        let mut text = String::from(
            "# What clients rely on, a line each. Lines are added by a test and removed by hand:\n\
             # docs/testing.md, \"The contract\".\n",
        );
        // What is broken stays in, so that renewing cannot hide it.
        for fact in now.union(&recorded) {
            writeln!(text, "{fact}").expect("a string takes everything");
        }
        fs::write(golden(), text).expect("the golden file can be written");
        return;
    }
    let added: Vec<&str> = added.into_iter().map(String::as_str).collect();
    panic!("the contract has grown; record it with: {RENEW}\n  {}", added.join("\n  "));
}

#[test]
fn every_kind_of_break_is_seen_and_no_addition_is_one() {
    type Change = fn(&mut FileDescriptorProto);
    let breaks: [(&str, Change); 11] = [
        ("a removed field", |file| drop(file.message_type[0].field.remove(0))),
        ("a renumbered field", |file| file.message_type[0].field[0].number = Some(99)),
        ("a renamed field", |file| file.message_type[0].field[0].name = Some("other".into())),
        ("a retyped field", |file| {
            file.message_type[0].field[0]
                .set_type(prost_types::field_descriptor_proto::Type::Bytes);
            file.message_type[0].field[0].type_name = None;
        }),
        ("a repeated field", |file| {
            file.message_type[0].field[0].set_label(Label::Repeated);
        }),
        ("a removed message", |file| drop(file.message_type.remove(0))),
        ("a removed RPC", |file| drop(file.service[0].method.remove(0))),
        ("an RPC that streams", |file| {
            file.service[0].method[0].server_streaming = Some(true);
        }),
        ("another request", |file| {
            file.service[0].method[0].input_type = Some(".towpath.v1.Run".into());
        }),
        ("a removed enum value", |file| drop(file.enum_type[0].value.pop())),
        ("a removed service", |file| drop(file.service.remove(0))),
    ];
    let before = facts(&ours());
    let changed = |change: Change| {
        let mut files = ours();
        let runs = files.iter_mut().find(|file| file.name().ends_with("/runs.proto"));
        change(runs.expect("the file of runs"));
        facts(&files)
    };
    for (what, change) in breaks {
        assert!(!broken(&before, &changed(change)).is_empty(), "{what} is not seen");
    }
    let additions: [Change; 3] = [
        |file| {
            let mut field = file.message_type[0].field[0].clone();
            (field.name, field.number) = (Some("new".into()), Some(98));
            file.message_type[0].field.push(field);
        },
        |file| {
            let mut message = file.message_type[0].clone();
            message.name = Some("New".into());
            file.message_type.push(message);
        },
        |file| {
            let mut rpc = file.service[0].method[0].clone();
            rpc.name = Some("New".into());
            file.service[0].method.push(rpc);
        },
    ];
    for addition in additions {
        assert_eq!(broken(&before, &changed(addition)), Vec::<String>::new());
    }
}
