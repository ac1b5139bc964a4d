//! Fetches one commit from a remote with the program `git`, and lets nothing of the remote or of
//! the machine's settings run anything. What the address may look like is checked before.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};
use towpath_engine::source::remote_problem;

/// How long a remote may take.
const FETCH_WITHIN: Duration = Duration::from_secs(300);
/// Most of what git says that is passed on, in bytes.
const SAID_BYTES_MAX: usize = 500;
/// What git sees of the environment: where programs, keys and proxies are.
const PASSED_ON: [&str; 9] = [
    "HOME",
    "PATH",
    "SSH_AUTH_SOCK",
    "TMPDIR",
    "USER",
    "XDG_CONFIG_HOME",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
];
/// Settings that let nothing run and nothing but https and ssh be spoken.
const SETTINGS: [&str; 8] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.allow=never",
    "protocol.ext.allow=never",
    "protocol.https.allow=always",
    "protocol.ssh.allow=always",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// The program `git`, configured so that it never prompts and runs no hooks; `files` lets it read
/// repositories of this machine.
pub fn git(files: bool) -> Command {
    let mut git = Command::new("git");
    // `GIT_DIR`, `GIT_CONFIG_COUNT` and others of the worker's environment would change what runs.
    git.env_clear();
    git.envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    git.envs([
        ("GIT_CONFIG_NOSYSTEM", "1"),
        // A prompt would wait for an answer that never comes, until the time limit.
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
        ("LC_ALL", "C"),
    ]);
    let allowed = if files { "protocol.file.allow=always" } else { "protocol.file.allow=never" };
    for setting in SETTINGS.into_iter().chain([allowed]) {
        git.args(["-c", setting]);
    }
    // A job that is cancelled drops the future, and the fetch must end with it.
    git.stdin(Stdio::null()).kill_on_drop(true);
    git
}

/// Fetches `commit`, without its history, into the bare repository `repository`.
pub(crate) async fn fetch(
    repository: &Path,
    address: &str,
    commit: &str,
    files: bool,
) -> Result<(), String> {
    // Checked again here: the worker trusts no server with what it hands to a program.
    if let Some(why) = remote_problem(address) {
        return Err(format!("its address {why}"));
    }
    if address.starts_with("file:") && !files {
        let flag = "--allow-file-remotes";
        return Err(format!("it is on a disk, and this worker was not started with `{flag}`"));
    }
    let mut git = git(files);
    git.arg("--git-dir").arg(repository);
    git.args(["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules"]);
    // Without it an address that begins with `-` would be an option, and some options run programs.
    git.args(["--end-of-options", address, commit]);
    let done = timeout(FETCH_WITHIN, git.output()).await;
    let output = match done {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("`git` cannot be started: {error}")),
        Err(_) => return Err(format!("it did not answer within {} s", FETCH_WITHIN.as_secs())),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The remote chooses this text, and it is shown in terminals.
    let said: String = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=SAID_BYTES_MAX.min(said.len())).rev().find(|at| said.is_char_boundary(*at));
    Err(format!("git says: {}", &said[..end.unwrap_or_default()]))
}
