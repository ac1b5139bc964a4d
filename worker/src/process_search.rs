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
    // The dead count as members until somebody waits for them, which may take long.
    can_be_searched() && !processes().any(|process| is_living_member(&process, leader))
}

/// Makes every process end that was born with a `TOW_OUTPUT` of `output`, by looking at all
/// processes of the system. Returns how many there were.
pub(crate) fn kill_marked(output: &Path) -> usize {
    let marked = processes().filter(|process| is_marked(process, output));
    let pids = marked.filter_map(|process| process.file_name()?.to_str()?.parse::<i32>().ok());
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

fn is_living_member(process: &Path, leader: Pid) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    // The name may hold anything; the state, the parent and the group follow it.
    let mut rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let (state, group) = (rest.next(), rest.nth(1));
    group == Some(leader.to_string().as_str()) && !matches!(state, Some("Z" | "X"))
}

fn is_marked(process: &Path, output: &Path) -> bool {
    // Of others we may not read it, and they are none of ours.
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    let mark = environment.split(|byte| *byte == 0).find_map(|one| one.strip_prefix(MARK));
    mark.is_some_and(|mark| mark == output.as_os_str().as_bytes())
}
