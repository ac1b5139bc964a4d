//! A script's process group: started, asked to end, made to end.
//!
//! The shell around the script leads the group. While it lives its number is its own, so a signal
//! cannot hit a stranger; that is why it outlives the script and is killed together with whatever
//! the script left running.

use std::{
    borrow::Cow,
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{attempts::AttemptsDir, execute::Script, open_files};

/// What reads the shell around a script, and a script that asks for no other.
const SHELL: &str = "/bin/sh";

/// Around a script for `sh`: `$1` is the attempt directory, `$2` the script.
///
/// It notes its number, runs the script in a copy of itself, notes what that ended with, keeps
/// hold of unread output without being able to add to it, tells the worker, and waits to be
/// killed. The pipes are open for reading and writing, so a script neither waits for a reader nor
/// dies for want of one; what nobody reads stays in the pipe. No signal is caught: `kill $$` in a
/// script ends the script.
const AROUND_SH: &str = r#"set +eux
echo "pid $$" >>"$1/journal" || exit 125
( eval "shift 2;$2" ) </dev/null
set -- "$1" "$?"
echo "exit $2" >>"$1/journal"
exec 3<"$1/out" 4<"$1/err" 1>&- 2>&-
echo "$2" >&0
read -r x <>"$1/../hold"
"#;

/// Around a script for another program: `$1` is the attempt directory, the rest the program and its arguments.
const AROUND_OTHER: &str = r#"set +eux
echo "pid $$" >>"$1/journal" || exit 125
( shift; exec "$@" ) </dev/null
set -- "$1" "$?"
echo "exit $2" >>"$1/journal"
exec 3<"$1/out" 4<"$1/err" 1>&- 2>&-
echo "$2" >&0
read -r x <>"$1/../hold"
"#;

/// `around` with the limit of open files that this process was started with, if it raised its own.
/// Programs that use `select`, or that close every number up to the limit, break or crawl under a
/// limit of a million.
fn with_own_limit(around: &'static str) -> Cow<'static, str> {
    match open_files::limit_of_scripts() {
        None => around.into(),
        // What a shell says that cannot set it is no output of the job.
        Some(files) => format!("ulimit -S -n {files} 2>/dev/null\n{around}").into(),
    }
}

/// The group of a running script.
#[derive(Debug)]
pub(crate) struct ProcessGroup {
    leader: Pid,
    /// The shell, if it is this process' own child and not buried yet.
    shell: Option<Child>,
}

impl ProcessGroup {
    /// Starts `script` in the attempt directory at `attempt directory`.
    pub(crate) fn start(
        attempts: &AttemptsDir,
        script: &Script,
        attempt_dir: &Path,
    ) -> io::Result<Self> {
        let pipe = |name| OpenOptions::new().read(true).write(true).open(attempt_dir.join(name));
        let mut command = Command::new(SHELL);
        command.arg("-c");
        if script.shell.is_empty() {
            command.arg(&*with_own_limit(AROUND_SH)).arg("sh").arg(attempt_dir);
        } else {
            command
                .arg(&*with_own_limit(AROUND_OTHER))
                .arg("sh")
                .arg(attempt_dir)
                .args(&script.shell);
        }
        let output = attempts.output(&script.run, &script.job, script.attempt);
        let shell = command
            .arg(&script.script)
            .current_dir(&script.folder)
            // Only what is chosen: the worker's own environment holds its token and its secrets.
            .env_clear()
            .envs(attempts.environment().of_script(script, &output))
            .stdin(Stdio::from(pipe("end")?))
            .stdout(Stdio::from(pipe("out")?))
            .stderr(Stdio::from(pipe("err")?))
            // A group of its own: Ctrl-C at the terminal of `tow` must not reach it, and a signal to
            // the group must not reach `tow`.
            .process_group(0)
            .spawn()?;
        let leader = Pid::from_raw(i32::try_from(shell.id()).map_err(io::Error::other)?);
        Ok(Self { leader, shell: Some(shell) })
    }

    /// A group that another process started.
    pub(crate) fn adopted(leader: i32) -> Self {
        Self { leader: Pid::from_raw(leader), shell: None }
    }

    /// Asks all members to end.
    pub(crate) fn ask_to_end(&self) {
        // Fails only if no member is left, which is what was wanted.
        let _ = killpg(self.leader, Signal::SIGTERM);
    }

    /// Makes all members end.
    pub(crate) fn kill(&self) {
        let _ = killpg(self.leader, Signal::SIGKILL);
    }

    /// Whether no member runs any more, once the shell is gone.
    pub(crate) fn is_empty(&self) -> bool {
        // EPERM: the number belongs to a group of another user by now, so ours has ended.
        if matches!(killpg(self.leader, None), Err(Errno::ESRCH | Errno::EPERM)) {
            return true;
        }
        // The dead count as members until somebody buries them, which may take long.
        Self::can_be_searched() && self.members().next().is_none()
    }

    /// Whether this system lets processes be searched for.
    pub(crate) fn can_be_searched() -> bool {
        Path::new("/proc/self/stat").exists()
    }

    /// Whether the group, whose shell is gone, still has a member of the attempt that may write
    /// its outputs to `output`. Its number might be a stranger's by now.
    pub(crate) fn has_member_of(&self, output: &Path) -> bool {
        let mine = format!("TOW_OUTPUT={}", output.display());
        self.members().any(|process| {
            fs::read(process.join("environ")).is_ok_and(|environ| {
                environ.split(|&byte| byte == 0).any(|entry| entry == mine.as_bytes())
            })
        })
    }

    /// The folders of the living members, where processes can be searched.
    fn members(&self) -> impl Iterator<Item = PathBuf> {
        let leader = self.leader.to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes.map(|process| process.path()).filter(move |process| {
            let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
            // The name may hold anything; the state, the parent and the group follow it.
            let mut rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
            let (state, group) = (rest.next(), rest.nth(1));
            group == Some(leader.as_str()) && !matches!(state, Some("Z" | "X"))
        })
    }

    /// How the shell ended, if it is a child of this process. Call once its pipe has closed: the
    /// shell is then as good as gone.
    pub(crate) fn wait_for_shell(&mut self) -> Option<ExitStatus> {
        self.shell.take().and_then(|mut shell| shell.wait().ok())
    }

    /// The shell, if it still has to be waited for.
    pub(crate) fn into_shell(self) -> Option<Child> {
        self.shell
    }
}
