//! Looks for processes by what the system says of them: members of a group, and those that carry the
//! mark of an attempt.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

/// The variable that tells whose a process is.
const MARK: &[u8] = b"TOW_OUTPUT=";

/// Whether no member of the group of `leader` runs any more.
pub(crate) fn is_group_empty(leader: Pid) -> bool {
    // EPERM: the number belongs to a group of another user by now, so ours has ended.
    if matches!(killpg(leader, None), Err(Errno::ESRCH | Errno::EPERM)) {
        return true;
    }
    // The dead count as members until their parent waits for them, which may take long.
    can_be_searched() && !processes().any(|process| is_living_member(&process, leader))
}

/// When process `pid` was started, in clock ticks of this boot. `None`: there is none, or this
/// system does not say.
pub(crate) fn start_time(pid: Pid) -> Option<u64> {
    Stat::of(Path::new(&format!("/proc/{pid}"))).field(22)?.parse().ok()
}

/// All processes that were born with a `TOW_OUTPUT` of `output`, by their folders in `/proc`.
pub(crate) fn marked_with(output: &Path) -> Vec<PathBuf> {
    processes().filter(|process| is_marked(process, output)).collect()
}

/// Makes every process end that was born with a `TOW_OUTPUT` of `output`, by looking at all
/// processes of the system. Returns how many there were.
#[cfg(test)]
pub(crate) fn kill_marked(output: &Path) -> usize {
    kill_all(&marked_with(output))
}

/// Makes these processes end. Returns how many there still were.
pub(crate) fn kill_all(processes: &[PathBuf]) -> usize {
    let numbers = processes.iter().filter_map(|process| process.file_name()?.to_str());
    let pids = numbers.filter_map(|number| number.parse::<i32>().ok());
    // It may have ended by itself meanwhile.
    pids.filter(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()).count()
}

/// Whether this system lets processes be searched for.
fn can_be_searched() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// The folders of all processes, where they can be searched.
fn processes() -> impl Iterator<Item = PathBuf> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_pid = |name: &std::ffi::OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    all.filter(move |entry| is_pid(&entry.file_name())).map(|entry| entry.path())
}

/// Whether `process` runs and is in the group of `leader`.
pub(crate) fn is_living_member(process: &Path, leader: Pid) -> bool {
    let stat = Stat::of(process);
    let is_member = stat.field(5) == Some(leader.to_string().as_str());
    is_member && !matches!(stat.field(3), Some("Z" | "X"))
}

/// What the system says of a process in one line. Empty: there is no such process.
struct Stat(String);

impl Stat {
    fn of(process: &Path) -> Self {
        // A process may call itself anything, also what is not UTF-8.
        let stat = fs::read(process.join("stat")).unwrap_or_default();
        Self(String::from_utf8_lossy(&stat).into_owned())
    }

    /// A field by its number in proc(5): 3 the state, 5 the group, 22 when it was started.
    fn field(&self, number: usize) -> Option<&str> {
        // The name, which is field 2, may hold spaces and brackets; nothing after it does.
        self.0.rsplit_once(") ")?.1.split(' ').nth(number.checked_sub(3)?)
    }
}

fn is_marked(process: &Path, output: &Path) -> bool {
    // Of others we may not read it, and they are none of ours.
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    let mark = environment.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(MARK));
    mark.is_some_and(|mark| mark == output.as_os_str().as_bytes())
}
