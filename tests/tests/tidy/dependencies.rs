//! What others may bring in: their licences, what is banned, and one version of each big crate.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;
use towpath_tests::root;

use crate::none;

/// Licences that ask for no more than a notice.
const LICENCES: [&str; 10] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "Unicode-3.0",
    "Zlib",
    "0BSD",
];

/// A second TLS, a second cryptography, or a C library of the system.
const BANNED: [&str; 5] = ["openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "openssl"];

/// Two versions of these do not fit together, or cost too much.
const SINGLE: [&str; 9] =
    ["tonic", "prost", "tokio", "hyper", "h2", "http", "rustls", "opentelemetry", "petgraph"];

fn packages() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

/// Whether `expression` can be met with what is allowed: every part of an AND, one of each OR.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    expression.split(" AND ").all(|part| {
        part.trim().trim_matches(['(', ')']).split(" OR ").any(|one| LICENCES.contains(&one.trim()))
    })
}

#[test]
fn every_dependency_has_a_licence_that_asks_for_no_more_than_a_notice() {
    let broken = packages()
        .iter()
        .filter(|package| !is_allowed(package["license"].as_str().unwrap_or_default()))
        .map(|package| format!("{}: {}", package["name"], package["license"]))
        .collect();
    none("the licence is not among those allowed", broken);
}

#[test]
fn nothing_banned_comes_in() {
    let packages = packages();
    let names = packages.iter().filter_map(|package| package["name"].as_str());
    none("banned", names.filter(|name| BANNED.contains(name)).map(str::to_owned).collect());
}

#[test]
fn there_is_one_version_of_each_big_crate() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        versions.entry(name).or_default().push(package["version"].to_string());
    }
    let broken = SINGLE
        .iter()
        .filter_map(|name| versions.get(*name).map(|found| (name, found)))
        .filter(|(_, found)| found.len() > 1)
        .map(|(name, found)| format!("{name}: {}", found.join(", ")))
        .collect();
    none("more than one version", broken);
}

#[test]
fn a_licence_expression_is_read_as_it_is_meant() {
    for allowed in ["MIT OR GPL-2.0", "MIT/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for refused in ["GPL-3.0", "MIT AND GPL-3.0", "", "LGPL-2.1-or-later"] {
        assert!(!is_allowed(refused), "{refused}");
    }
}
