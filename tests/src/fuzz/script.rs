//! Scripts that are filled in, and what scripts print.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use towpath_engine::expression::{Context, fill_shell};

/// Values that change how the rest of a script is read, unless they are one word.
const VALUES: [&str; 5] = ["it's", "a\"b", "$(c", "`d", "e #\n; f ) } \\"];
/// What reads them. `sh` is a dash on some machines, a bash on others.
const SHELLS: [&str; 3] = ["/bin/sh", "dash", "bash"];
/// Longer scripts cost time and show nothing that shorter ones do not.
const SCRIPT_BYTES_MAX: usize = 4 * 1024;

/// Where a value may stand, any value leaves the rest of the script as it was: a shell that reads
/// the script with one quoted word there reads it with every other value too. Shells differ, so this
/// holds for each that is installed.
///
/// Shells only read here (`-n`): nothing of what was made up is ever run.
pub(super) fn shell(bytes: &[u8]) {
    let Ok(script) = std::str::from_utf8(bytes) else { return };
    if script.len() > SCRIPT_BYTES_MAX || script.contains('\0') || !script.contains("${{") {
        return;
    }
    let Ok(plain) = fill_shell(script, &context("a b")) else { return };
    for shell in SHELLS.iter().filter(|shell| is_readable(shell, &plain)) {
        for value in VALUES {
            let filled = fill_shell(script, &context(value));
            let filled = filled.expect("whether a value may stand there does not depend on it");
            let reads = is_readable(shell, &filled);
            assert!(reads, "{shell} cannot read:\n{filled}\nof:\n{script}");
        }
    }
}

fn context(value: &str) -> Context {
    let matrix = BTreeMap::from([("v".to_owned(), value.to_owned())]);
    Context { matrix, ..Context::default() }
}

/// Whether `shell` is there and can read `script` to its end.
fn is_readable(shell: &str, script: &str) -> bool {
    let shell = Command::new(shell)
        .arg("-n")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut shell) = shell else { return false };
    let mut stdin = shell.stdin.take().expect("its input");
    // A shell that finds a fault does not read on.
    drop(stdin.write_all(script.as_bytes()));
    drop(stdin);
    shell.wait().expect("it ends").success()
}

/// The first line is a secret, the rest what is printed around it, cut into pieces of as many bytes
/// as the second line has. Nothing that is shown holds the secret.
pub(super) fn mask(bytes: &[u8]) {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let (Some(secret), Some(cut), Some(around)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let mut printed = around.to_vec();
    printed.extend_from_slice(secret);
    printed.extend_from_slice(around);
    let pieces: Vec<&[u8]> = printed.chunks(cut.len().max(1)).collect();
    let Some(shown) = towpath_worker::fuzzing::masked(secret, &pieces) else { return };
    // Stars beside stars are a secret of stars.
    let found = shown.windows(secret.len()).any(|window| window == secret);
    assert!(!found || secret.contains(&b'*'), "{:?} is shown", String::from_utf8_lossy(secret));
    let whole = towpath_worker::fuzzing::masked(secret, &[&printed]);
    assert_eq!(whole, Some(shown), "what is shown depends on how the output was cut");
}
