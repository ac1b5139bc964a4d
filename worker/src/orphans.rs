//! Processes that outlive their job although they left its process group: daemons.
//!
//! Every process of a script is born with a `TOW_OUTPUT` that names its attempt, and keeps it
//! wherever it goes. What still has one after its attempt has ended is ended too, at most once in
//! [`SWEEP_EVERY`]. A process that is to stay takes `TOW_OUTPUT` out of its environment.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::sync::Notify;

/// Shortest time between two looks at the processes of the machine.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often an ended attempt is looked for: what was just being forked is seen by the next look.
const LOOKS: u8 = 2;
/// The variable that tells whose a process is.
const MARK: &[u8] = b"TOW_OUTPUT=";

/// Attempts that have ended, and may have left something.
#[derive(Debug, Default)]
pub(crate) struct OrphanProcesses {
    ended: Mutex<HashMap<OsString, u8>>,
    more: Notify,
}

impl OrphanProcesses {
    /// The attempt whose `TOW_OUTPUT` is `output` has ended.
    pub(crate) fn ended(&self, output: PathBuf) {
        self.list().insert(output.into_os_string(), LOOKS);
        self.more.notify_one();
    }

    /// Ends what is left of ended attempts, for as long as it is polled.
    pub(crate) async fn sweep_always(&self) {
        loop {
            let left = !self.list().is_empty();
            if !left {
                self.more.notified().await;
            }
            self.sweep();
            // Reading all of `/proc` costs milliseconds: jobs that end meanwhile share the next look.
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }

    /// Ends what is left of ended attempts now.
    pub(crate) fn sweep(&self) {
        let mut ended = self.list();
        if ended.is_empty() {
            return;
        }
        // A system without `/proc` cannot be searched; keeping the list would only let it grow.
        let Ok(processes) = fs::read_dir("/proc") else { return ended.clear() };
        for process in processes.flatten() {
            let name = process.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // Of others we may not read it, and they are none of ours.
            let Ok(environment) = fs::read(process.path().join("environ")) else { continue };
            let mark = environment.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(MARK));
            if mark.is_some_and(|mark| ended.contains_key(std::ffi::OsStr::from_bytes(mark))) {
                tracing::info!(pid, "a process outlived its job");
                // It may have ended by itself meanwhile.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        ended.retain(|_, looks| {
            *looks -= 1;
            *looks > 0
        });
    }

    fn list(&self) -> MutexGuard<'_, HashMap<OsString, u8>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn marked(output: &str) -> std::process::Child {
        let mut sleep = Command::new("sleep");
        sleep.arg("60").env("TOW_OUTPUT", output).stdout(Stdio::null());
        sleep.spawn().unwrap()
    }

    #[test]
    fn what_an_ended_attempt_left_is_ended_and_nothing_else() {
        let own = format!("/nowhere/{}", uuid::Uuid::now_v7());
        let other = format!("{own}.2");
        let (mut left, mut runs) = (marked(&own), marked(&other));
        let orphans = OrphanProcesses::default();

        orphans.sweep();
        assert!(left.try_wait().unwrap().is_none(), "its attempt has not ended");
        orphans.ended(own.into());
        orphans.sweep();

        assert!(!left.wait().unwrap().success());
        assert!(runs.try_wait().unwrap().is_none());
        orphans.sweep();
        assert!(orphans.list().is_empty(), "it is looked for twice");
        runs.kill().unwrap();
        runs.wait().unwrap();
    }
}
