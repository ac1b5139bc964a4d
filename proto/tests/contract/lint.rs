//! The rules of `buf lint` in its category STANDARD, under their names there, and two of our own:
//! everything has a comment, and field numbers have no gaps.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, ServiceDescriptorProto,
    field_descriptor_proto::Label,
};

use super::ours;

/// What breaks a rule: `RULE: what`.
type Broken = Vec<String>;

fn is_upper_snake(name: &str) -> bool {
    !name.is_empty()
        && name.split('_').all(|part| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
        })
}

fn is_lower_snake(name: &str) -> bool {
    name == name.to_ascii_lowercase() && is_upper_snake(&name.to_ascii_uppercase())
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
}

/// `RunPhase` as `RUN_PHASE`.
fn upper_snake(pascal: &str) -> String {
    let mut name = String::new();
    for (at, c) in pascal.char_indices() {
        if at > 0 && c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

fn rule(broken: &mut Broken, holds: bool, rule: &str, what: &str) {
    if !holds {
        broken.push(format!("{rule}: {what}"));
    }
}

/// What in `files` breaks a rule.
fn lint(files: &[FileDescriptorProto]) -> Broken {
    let mut broken = Broken::new();
    for file in files {
        lint_file(file, &mut broken);
        for message in &file.message_type {
            lint_message(message, &mut broken);
        }
        for one in &file.enum_type {
            lint_enum(one, &mut broken);
        }
        for service in &file.service {
            lint_service(service, &mut broken);
        }
        lint_comments(file, &mut broken);
    }
    lint_packages(files, &mut broken);
    lint_uses(files, &mut broken);
    broken
}

fn lint_file(file: &FileDescriptorProto, broken: &mut Broken) {
    let (path, package) = (file.name(), file.package());
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.strip_suffix(".proto").unwrap_or_default();
    rule(broken, is_lower_snake(stem), "FILE_LOWER_SNAKE_CASE", path);
    rule(broken, file.syntax() == "proto3", "SYNTAX_SPECIFIED", path);
    rule(broken, !package.is_empty(), "PACKAGE_DEFINED", path);
    rule(broken, package.split('.').all(is_lower_snake), "PACKAGE_LOWER_SNAKE_CASE", path);
    rule(broken, folder == package.replace('.', "/"), "PACKAGE_DIRECTORY_MATCH", path);
    let version = package.rsplit('.').next().and_then(|last| last.strip_prefix('v'));
    let versioned = version.is_some_and(|digits| digits.parse::<u32>().is_ok_and(|n| n > 0));
    rule(broken, versioned, "PACKAGE_VERSION_SUFFIX", path);
    rule(broken, file.public_dependency.is_empty(), "IMPORT_NO_PUBLIC", path);
}

/// Rules that hold of all files of one package.
fn lint_packages(files: &[FileDescriptorProto], broken: &mut Broken) {
    let mut options: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let chosen = file.options.as_ref().map(|options| {
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                options.csharp_namespace,
                options.go_package,
                options.java_package,
                options.java_multiple_files,
                options.php_namespace,
                options.ruby_package,
                options.swift_prefix,
            )
        });
        options.entry(file.package()).or_default().insert(chosen.unwrap_or_default());
    }
    for (package, chosen) in options {
        rule(broken, chosen.len() == 1, "PACKAGE_SAME_OPTIONS", package);
    }
}

fn lint_message(message: &DescriptorProto, broken: &mut Broken) {
    let name = message.name();
    let is_map = message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry);
    if is_map {
        return;
    }
    rule(broken, is_pascal(name), "MESSAGE_PASCAL_CASE", name);
    for field in &message.field {
        let place = format!("{name}.{}", field.name());
        rule(broken, is_lower_snake(field.name()), "FIELD_LOWER_SNAKE_CASE", &place);
        rule(broken, field.label() != Label::Required, "FIELD_NOT_REQUIRED", &place);
    }
    for oneof in message.oneof_decl.iter().filter(|oneof| !oneof.name().starts_with('_')) {
        rule(broken, is_lower_snake(oneof.name()), "ONEOF_LOWER_SNAKE_CASE", name);
    }
    let mut numbers: Vec<i32> = message.field.iter().map(|field| field.number()).collect();
    // What was removed stays reserved: its number is not a gap.
    for range in &message.reserved_range {
        numbers.extend(range.start()..range.end());
    }
    numbers.sort_unstable();
    rule(broken, numbers.iter().copied().eq(1..=numbers.len() as i32), "FIELD_NUMBERS", name);
    for nested in &message.nested_type {
        lint_message(nested, broken);
    }
    for nested in &message.enum_type {
        lint_enum(nested, broken);
    }
}

fn lint_enum(one: &EnumDescriptorProto, broken: &mut Broken) {
    let name = one.name();
    rule(broken, is_pascal(name), "ENUM_PASCAL_CASE", name);
    let alias = one.options.as_ref().is_some_and(prost_types::EnumOptions::allow_alias);
    rule(broken, !alias, "ENUM_NO_ALLOW_ALIAS", name);
    let first = one.value.first();
    rule(broken, first.is_some_and(|value| value.number() == 0), "ENUM_FIRST_VALUE_ZERO", name);
    let zero = first.is_some_and(|value| value.name().ends_with("_UNSPECIFIED"));
    rule(broken, zero, "ENUM_ZERO_VALUE_SUFFIX", name);
    let prefix = format!("{}_", upper_snake(name));
    for value in &one.value {
        rule(broken, is_upper_snake(value.name()), "ENUM_VALUE_UPPER_SNAKE_CASE", value.name());
        rule(broken, value.name().starts_with(&prefix), "ENUM_VALUE_PREFIX", value.name());
    }
}

fn lint_service(service: &ServiceDescriptorProto, broken: &mut Broken) {
    let name = service.name();
    rule(broken, is_pascal(name), "SERVICE_PASCAL_CASE", name);
    rule(broken, name.ends_with("Service"), "SERVICE_SUFFIX", name);
    for rpc in &service.method {
        let place = format!("{name}.{}", rpc.name());
        rule(broken, is_pascal(rpc.name()), "RPC_PASCAL_CASE", &place);
        let last = |of: &str| of.rsplit('.').next().unwrap_or_default().to_owned();
        let named = |of: &str, suffix: &str| {
            [format!("{}{suffix}", rpc.name()), format!("{name}{}{suffix}", rpc.name())]
                .contains(&last(of))
        };
        rule(broken, named(rpc.input_type(), "Request"), "RPC_REQUEST_STANDARD_NAME", &place);
        rule(broken, named(rpc.output_type(), "Response"), "RPC_RESPONSE_STANDARD_NAME", &place);
    }
}

/// Rules of what is used where: by imports and by RPCs.
fn lint_uses(files: &[FileDescriptorProto], broken: &mut Broken) {
    let mut rpcs: BTreeMap<&str, u32> = BTreeMap::new();
    let mut defined: BTreeMap<String, &str> = BTreeMap::new();
    for file in files {
        let names = file.message_type.iter().map(DescriptorProto::name);
        let names = names.chain(file.enum_type.iter().map(EnumDescriptorProto::name));
        defined.extend(names.map(|name| (format!(".{}.{name}", file.package()), file.name())));
    }
    for well_known in ["Duration", "Timestamp", "FieldMask"] {
        let path = match well_known {
            "Duration" => "google/protobuf/duration.proto",
            "Timestamp" => "google/protobuf/timestamp.proto",
            _ => "google/protobuf/field_mask.proto",
        };
        defined.insert(format!(".google.protobuf.{well_known}"), path);
    }
    for file in files {
        let mut used: BTreeSet<&str> = BTreeSet::new();
        let mut types: Vec<&str> = Vec::new();
        for message in &file.message_type {
            types.extend(message.field.iter().map(|field| field.type_name()));
            for nested in &message.nested_type {
                types.extend(nested.field.iter().map(|field| field.type_name()));
            }
        }
        for rpc in file.service.iter().flat_map(|service| &service.method) {
            *rpcs.entry(rpc.input_type()).or_default() += 1;
            *rpcs.entry(rpc.output_type()).or_default() += 1;
            types.extend([rpc.input_type(), rpc.output_type()]);
        }
        used.extend(types.iter().filter_map(|name| defined.get(*name)).copied());
        for import in &file.dependency {
            let place = format!("{} imports {import}", file.name());
            rule(broken, used.contains(import.as_str()), "IMPORT_USED", &place);
        }
    }
    for (message, uses) in rpcs {
        rule(broken, uses == 1, "RPC_REQUEST_RESPONSE_UNIQUE", message);
    }
}

/// Everything that has no name to explain it says what it is: services, RPCs, enums, their values
/// but the first, and messages that are no request and no response.
fn lint_comments(file: &FileDescriptorProto, broken: &mut Broken) {
    let commented: BTreeSet<&[i32]> = file
        .source_code_info
        .iter()
        .flat_map(|info| &info.location)
        .filter(|location| !location.leading_comments().trim().is_empty())
        .map(|location| location.path.as_slice())
        .collect();
    let mut wanted: Vec<(Vec<i32>, String)> = Vec::new();
    for (message, at) in file.message_type.iter().zip(0..) {
        let name = message.name();
        if !message.field.is_empty() && !name.ends_with("Request") && !name.ends_with("Response") {
            wanted.push((vec![4, at], name.to_owned()));
        }
    }
    for (one, at) in file.enum_type.iter().zip(0..) {
        wanted.push((vec![5, at], one.name().to_owned()));
        for (value, nth) in one.value.iter().zip(0..).skip(1) {
            wanted.push((vec![5, at, 2, nth], value.name().to_owned()));
        }
    }
    for (service, at) in file.service.iter().zip(0..) {
        wanted.push((vec![6, at], service.name().to_owned()));
        for (rpc, nth) in service.method.iter().zip(0..) {
            wanted.push((vec![6, at, 2, nth], rpc.name().to_owned()));
        }
    }
    for (path, name) in wanted {
        rule(broken, commented.contains(path.as_slice()), "COMMENT", &name);
    }
}

#[test]
fn the_contract_keeps_the_rules() {
    let files = ours();
    assert!(files.len() >= 5, "the files of the contract");
    let broken = lint(&files);
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// One fault for each rule, in the contract as it is.
#[test]
fn every_rule_finds_its_fault() {
    type Fault = fn(&mut FileDescriptorProto);
    let faults: [(&str, Fault); 24] = [
        ("FILE_LOWER_SNAKE_CASE", |file| file.name = Some("towpath/v1/Runs.proto".into())),
        ("SYNTAX_SPECIFIED", |file| file.syntax = None),
        ("PACKAGE_DEFINED", |file| file.package = Some(String::new())),
        ("PACKAGE_LOWER_SNAKE_CASE", |file| file.package = Some("Towpath.v1".into())),
        ("PACKAGE_DIRECTORY_MATCH", |file| file.package = Some("towpath.v2".into())),
        ("PACKAGE_VERSION_SUFFIX", |file| file.package = Some("towpath.runs".into())),
        ("IMPORT_NO_PUBLIC", |file| file.public_dependency = vec![0]),
        ("IMPORT_USED", |file| file.dependency.push("google/protobuf/any.proto".into())),
        ("PACKAGE_SAME_OPTIONS", |file| {
            file.options.get_or_insert_default().go_package = Some("other".into());
        }),
        ("MESSAGE_PASCAL_CASE", |file| file.message_type[0].name = Some("read_point".into())),
        ("FIELD_LOWER_SNAKE_CASE", |file| {
            file.message_type[0].field[0].name = Some("runId".into());
        }),
        ("FIELD_NOT_REQUIRED", |file| {
            file.message_type[0].field[0].set_label(Label::Required);
        }),
        ("FIELD_NUMBERS", |file| file.message_type[0].field[0].number = Some(40)),
        ("ENUM_PASCAL_CASE", |file| file.enum_type[0].name = Some("RUN_PHASE".into())),
        ("ENUM_NO_ALLOW_ALIAS", |file| {
            file.enum_type[0].options.get_or_insert_default().allow_alias = Some(true);
        }),
        ("ENUM_FIRST_VALUE_ZERO", |file| file.enum_type[0].value[0].number = Some(1)),
        ("ENUM_ZERO_VALUE_SUFFIX", |file| {
            file.enum_type[0].value[0].name = Some("RUN_PHASE_NONE".into());
        }),
        ("ENUM_VALUE_UPPER_SNAKE_CASE", |file| {
            file.enum_type[0].value[1].name = Some("RUN_PHASE_Running".into());
        }),
        ("ENUM_VALUE_PREFIX", |file| file.enum_type[0].value[1].name = Some("RUNNING".into())),
        ("SERVICE_SUFFIX", |file| file.service[0].name = Some("Runs".into())),
        ("RPC_PASCAL_CASE", |file| file.service[0].method[0].name = Some("startRun".into())),
        ("RPC_REQUEST_STANDARD_NAME", |file| {
            file.service[0].method[0].input_type = Some(".towpath.v1.Run".into());
        }),
        ("RPC_RESPONSE_STANDARD_NAME", |file| {
            file.service[0].method[0].output_type = Some(".towpath.v1.Run".into());
        }),
        ("RPC_REQUEST_RESPONSE_UNIQUE", |file| {
            let first = file.service[0].method[0].input_type.clone();
            file.service[0].method[1].input_type = first;
        }),
    ];
    for (rule, fault) in faults {
        let mut files = ours();
        let runs = files.iter_mut().find(|file| file.name().ends_with("/runs.proto"));
        fault(runs.expect("the file of runs"));
        let found = lint(&files).iter().any(|broken| broken.starts_with(&format!("{rule}: ")));
        assert!(found, "{rule} is not found");
    }
    let mut files = ours();
    files[0].source_code_info = None;
    assert!(lint(&files).iter().any(|broken| broken.starts_with("COMMENT: ")));
}

/// The comments of RPCs list the codes that they answer. A code without a page is a misprint.
#[test]
fn every_code_in_a_comment_has_its_page() {
    let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
    let mut codes = 0;
    for file in ours() {
        for location in file.source_code_info.iter().flat_map(|info| &info.location) {
            let Some((_, listed)) = location.leading_comments().split_once("Codes: ") else {
                continue;
            };
            let end = listed.find('.').unwrap_or(listed.len());
            for code in listed[..end].split(',').map(str::trim) {
                let page = pages.join(format!("{code}.md"));
                assert!(page.is_file(), "{}: `{code}` has no page", file.name());
                codes += 1;
            }
        }
    }
    assert!(codes > 50, "{codes} codes");
}
