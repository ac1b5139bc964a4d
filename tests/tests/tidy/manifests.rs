//! Who may import whom, and what every manifest leaves to the workspace.

use std::{collections::BTreeMap, fs};

use towpath_tests::root;

use crate::none;

/// The crates, their folders, and what of ours they may import.
const MAY_IMPORT: [(&str, &str, &[&str]); 9] = [
    ("engine", "towpath-engine", &[]),
    // Itself, as a dev-dependency, for its contract.
    ("storage", "towpath-storage", &["towpath-storage"]),
    ("pipeline", "towpath-pipeline", &["towpath-engine"]),
    ("proto", "towpath-proto", &[]),
    (
        "server",
        "towpath-server",
        &["towpath-engine", "towpath-pipeline", "towpath-storage", "towpath-proto", "towpath-wire"],
    ),
    ("wire", "towpath-wire", &["towpath-engine", "towpath-proto"]),
    ("worker", "towpath-worker", &["towpath-engine", "towpath-proto"]),
    (
        "client",
        "towpath",
        &[
            "towpath-server",
            "towpath-worker",
            "towpath-pipeline",
            "towpath-proto",
            "towpath-wire",
            "towpath-engine",
        ],
    ),
    (
        "tests",
        "towpath-tests",
        &[
            "towpath-engine",
            "towpath-pipeline",
            "towpath-storage",
            "towpath-proto",
            "towpath-server",
            "towpath-worker",
            "towpath-wire",
            "towpath",
        ],
    ),
];

/// The lines of each section of a manifest. Enough of TOML for manifests as we write them.
fn sections(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            current = name.trim_matches(['[', ']']).to_owned();
        } else if !line.is_empty() && !line.starts_with('#') {
            sections.entry(current.clone()).or_default().push(line.to_owned());
        }
    }
    sections
}

fn manifest(folder: &str) -> String {
    let path = root().join(folder).join("Cargo.toml");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every dependency of a manifest, with the line that says so.
fn dependencies(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (section, lines) in sections(text) {
        if let Some((_, name)) = section.split_once("dependencies.") {
            found.push((name.to_owned(), lines.join(" ")));
        } else if section.ends_with("dependencies") && section != "workspace.dependencies" {
            found.extend(lines.iter().filter_map(|line| {
                let name = line.split(['=', '.', ' ']).next()?;
                (!line.starts_with([']', '"'])).then(|| (name.to_owned(), line.clone()))
            }));
        }
    }
    found
}

#[test]
fn imports_point_down_only() {
    let mut broken = Vec::new();
    for (folder, own, allowed) in MAY_IMPORT {
        let text = manifest(folder);
        let (own, name) = (format!("\"{own}\""), "name = ");
        assert!(text.contains(&format!("{name}{own}")), "{folder} is called {own}");
        let ours = dependencies(&text).into_iter().map(|(name, _)| name);
        let ours = ours.filter(|name| name.starts_with("towpath"));
        broken.extend(
            ours.filter(|name| !allowed.contains(&name.as_str()))
                .map(|name| format!("{folder} imports {name}")),
        );
    }
    none("imports point down only", broken);
}

#[test]
fn every_crate_of_the_workspace_is_known_here() {
    let text = manifest(".");
    let members = text.lines().find(|line| line.starts_with("members")).expect("the members");
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    let mut known: Vec<&str> = MAY_IMPORT.iter().map(|(folder, ..)| *folder).collect();
    known.sort_unstable();
    let mut found = members.clone();
    found.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn versions_and_lints_live_in_the_workspace() {
    const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];
    let mut broken = Vec::new();
    for (folder, ..) in MAY_IMPORT {
        let text = manifest(folder);
        let sections = sections(&text);
        let package = &sections["package"];
        for key in INHERITED {
            if !package.contains(&format!("{key}.workspace = true")) {
                broken.push(format!("{folder}: `{key}` is not inherited"));
            }
        }
        // What is generated keeps its own rules; `unsafe` is forbidden there too.
        let generated = folder == "proto" && text.contains("unsafe_code = \"forbid\"");
        if !generated
            && sections
                .get("lints")
                .is_none_or(|lints| lints[..] != ["workspace = true".to_owned()])
        {
            broken.push(format!("{folder}: the lints are not inherited"));
        }
        for (name, line) in dependencies(&text) {
            let inherits = line.contains(".workspace = true") || line.contains("workspace = true");
            // A crate may name itself by path to test with a feature of its own.
            if !inherits && !line.contains("path = \".\"") {
                broken.push(format!("{folder}: `{name}` has a version of its own"));
            }
        }
        if sections.keys().any(|section| section.starts_with("profile")) {
            broken.push(format!("{folder}: it has a profile of its own"));
        }
    }
    none("versions, lints and profiles live in the workspace", broken);
}
