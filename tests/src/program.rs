//! Where `tow` is, for the tests that run it.

use std::{env, path::PathBuf, process::Command, sync::OnceLock};

use crate::root;

/// The program, built from the sources as they are now, with the profile of the test that asks.
/// `TOW_BIN` names another one.
pub fn program() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> PathBuf {
    if let Some(chosen) = env::var_os("TOW_BIN") {
        return chosen.into();
    }
    // …/target/PROFILE/deps/kill-0123456789abcdef
    let own = env::current_exe().expect("a test is a program");
    let profile = own.ancestors().nth(2).expect("a test lies in the target folder").to_owned();
    let name = profile.file_name().expect("a profile").to_string_lossy().into_owned();
    let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // `tow` alone would be built with fewer features of its dependencies than `cargo test` asks
        // for, so minutes would be spent on compiling those a second time. A test target makes
        // cargo choose the same features; this one is small.
        .args(["build", "--quiet", "--workspace", "--bin", "tow", "--test", "golden", "--profile"])
        .arg(if name == "debug" { "dev" } else { &name })
        .arg("--target-dir")
        .arg(profile.parent().expect("a profile lies in the target folder"))
        .current_dir(root())
        .status();
    assert!(built.expect("cargo can be started").success(), "`tow` can be built");
    profile.join("tow")
}
