//! `tow doctor`.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::statvfs::statvfs;
use serde::Serialize;
use tokio_stream::StreamExt as _;
use towpath_engine::code::ErrorCode;
use towpath_engine::{log_clock::JUMP_MS_MIN, time::duration_words};
use towpath_proto::{time::duration_ms, v1};

use super::{
    App, CommandResult,
    backup::{Progress, size_words},
    validate::counted,
};
use crate::{
    args::Output,
    connect::{ServerConnection, store_folder},
    exit,
    failure::Failure,
    render::{Mark, safe},
};

/// Less free space than this is worth a warning, in bytes. Source: a day of a busy store.
const FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Other users must not read the store: records and output may contain what a script printed.
const OTHERS_MODE: u32 = 0o077;

/// Check the store: read the log, rebuild every view, compare
///
/// Every record is read and its hash checked, every run is replayed and compared with what the
/// server believes, every blob is read. Nothing is changed. Exit code 7 if anything differs; a
/// remark about the machine does not change the exit code.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {}

/// One thing that was looked at.
#[derive(Serialize)]
struct Look {
    name: &'static str,
    ok: bool,
    about: String,
}

#[derive(Serialize)]
struct DoctorJson<'a> {
    /// Whether the store is as it was written.
    ok: bool,
    checks: &'a [Look],
    records: u64,
    runs: u64,
    findings: &'a [String],
    hash: String,
}

/// Looks at everything.
pub(crate) async fn doctor(app: &App, _: DoctorArgs) -> CommandResult {
    let url = app.url();
    // Checks of the machine come first: they work even if the store cannot be opened.
    let mut looks = vec![shell()];
    if let Some(folder) = store_folder(&url).filter(|folder| folder.exists()) {
        looks.extend([private(&folder), room(&folder)]);
    }
    if app.output() == Output::Text {
        for look in &looks {
            show(app, look)?;
        }
    }
    // An existing store only: a check must not create what it checks.
    let server = ServerConnection::connect_existing(&url).await?;
    let examined = examine(app, &server, &mut looks).await;
    server.close().await;
    let found = examined?;
    if app.output() != Output::Text {
        app.json(&DoctorJson {
            ok: found.findings.is_empty(),
            checks: &looks,
            records: found.records,
            runs: found.runs,
            findings: &found.findings,
            hash: found.log_hash,
        })?;
    }
    Ok(if found.findings.is_empty() { exit::DONE } else { exit::DAMAGED })
}

async fn examine(
    app: &App,
    server: &ServerConnection,
    looks: &mut Vec<Look>,
) -> Result<v1::CheckResponse, Failure> {
    let is_text = app.output() == Output::Text;
    for look in owner(server).await? {
        if is_text {
            show(app, &look)?;
        }
        looks.push(look);
    }
    let found = check(app, server).await?;
    if is_text {
        let counted =
            |count: u64, thing| counted(usize::try_from(count).unwrap_or(usize::MAX), thing);
        let mut about =
            format!("{}, {}", counted(found.records, "record"), counted(found.runs, "run"));
        if found.findings.is_empty() {
            about.push_str(": every hash, view and blob agrees");
        }
        show(app, &Look { name: "log", ok: found.findings.is_empty(), about })?;
        for finding in &found.findings {
            app.print(&format!("  {}\n", safe(finding)))?;
        }
        app.print(&format!("  hash {}\n", found.log_hash))?;
    }
    Ok(found)
}

/// The server's own check, to its end.
async fn check(app: &App, server: &ServerConnection) -> Result<v1::CheckResponse, Failure> {
    let mut reports = server.log().check(v1::CheckRequest {}).await?.into_inner();
    let mut progress = Progress::new(&app.style);
    let mut last = None;
    while let Some(report) = reports.next().await {
        let report = report.inspect_err(|_| progress.clear())?;
        if report.done {
            last = Some(report);
        } else {
            progress.show(|| format!("{} records checked", report.records));
        }
    }
    progress.clear();
    // A stream that ends without its last report was interrupted; the part that was checked proves
    // nothing about the rest.
    last.ok_or_else(|| {
        Failure::new(ErrorCode::Unreachable, "the check did not come to its end", "Try again.")
    })
}

fn show(app: &App, look: &Look) -> Result<(), Failure> {
    let mark = app.style.mark(if look.ok { Mark::Done } else { Mark::Failed });
    app.print(&format!("{mark} {:<8} {}\n", look.name, safe(&look.about)))
}

/// Without a shell no job can run.
fn shell() -> Look {
    let answer = Command::new("sh")
        .args(["-c", "exit 0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let (ok, about) = match answer {
        Ok(status) if status.success() => (true, "sh answers".to_owned()),
        Ok(status) => (false, format!("sh ends with {status}")),
        Err(error) => (false, format!("sh cannot be started: {error}")),
    };
    Look { name: "shell", ok, about }
}

/// The folder of the store is for its owner alone.
fn private(folder: &Path) -> Look {
    let name = "folder";
    let shown = format!("`{}`", folder.display());
    let found = match fs::metadata(folder) {
        Ok(found) => found,
        Err(error) => return Look { name, ok: false, about: format!("{shown}: {error}") },
    };
    let mode = found.permissions().mode() & 0o777;
    let ours = nix::unistd::geteuid().as_raw();
    let about = if found.uid() != ours {
        format!("{shown} belongs to user {}, and you are {ours}", found.uid())
    } else if mode & OTHERS_MODE != 0 {
        format!("{shown} is open to others (mode {mode:04o}); chmod 700 shuts it")
    } else {
        return Look { name, ok: true, about: format!("{shown} is yours alone (mode {mode:04o})") };
    };
    Look { name, ok: false, about }
}

/// A store that cannot grow stops.
fn room(folder: &Path) -> Look {
    let (ok, about) = match statvfs(folder) {
        Ok(disk) => {
            // The types differ from system to system.
            #[expect(clippy::useless_conversion, reason = "blocks are 32 bits wide elsewhere")]
            let free = u64::from(disk.blocks_available()).saturating_mul(disk.fragment_size());
            (free >= FREE_BYTES_MIN, format!("{} free", size_words(free)))
        }
        Err(error) => (false, format!("free space is unknown: {error}")),
    };
    Look { name: "disk", ok, about }
}

/// Who has the store open, and whether its clock agrees with the log.
async fn owner(server: &ServerConnection) -> Result<[Look; 2], Failure> {
    let description = server.log().describe(v1::DescribeRequest {}).await?.into_inner();
    let v1::DescribeResponse { version, pid, position, clock_ahead, .. } = description;
    let who = if server.is_ours() { "this process" } else { "another process" };
    let about = format!("{who}, pid {pid}, version {version}, at position {position}");
    let server = Look { name: "server", ok: version == env!("CARGO_PKG_VERSION"), about };
    Ok([server, clock(clock_ahead.as_ref().and_then(duration_ms).unwrap_or_default())])
}

/// A clock that was ahead leaves its time in the log for good.
fn clock(ahead_ms: u64) -> Look {
    let ok = ahead_ms < JUMP_MS_MIN;
    let about = if ok {
        "the log and the wall clock agree".to_owned()
    } else {
        let ahead = duration_words(ahead_ms);
        format!("the log is {ahead} ahead of the wall clock: check the time of this machine")
    };
    Look { name: "clock", ok, about }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_can_enter_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let open = private(dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let shut = private(dir.path());
        assert!(!open.ok && open.about.contains("mode 0755"), "{}", open.about);
        assert!(shut.ok, "{}", shut.about);
    }

    #[test]
    fn a_clock_that_is_behind_the_log_is_found() {
        assert!(clock(0).ok && clock(JUMP_MS_MIN - 1).ok);
        let behind = clock(90_000);
        assert!(!behind.ok && behind.about.contains("1m30s ahead"), "{}", behind.about);
    }

    #[test]
    fn the_machine_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        assert!(shell().ok);
        assert!(room(dir.path()).about.ends_with(" free"));
        assert!(!room(&dir.path().join("missing")).ok);
        assert!(!private(&dir.path().join("missing")).ok);
    }
}
