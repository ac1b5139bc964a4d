//! A terminal of 80 columns and 24 rows with `tow` in it, and what can be seen on it.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    num::NonZero,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// How long anything may take on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);
/// Lines that scrolled out of the window and can still be seen.
const SCROLLBACK: usize = 5_000;

/// A program in a terminal. Ends with the test.
pub(crate) struct Terminal {
    child: Child,
    controller: File,
    bytes: Receiver<Vec<u8>>,
    /// Everything that was written to it.
    pub(crate) written: String,
    screen: vt100::Parser,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn cells(count: u16) -> NonZero<u16> {
    NonZero::new(count).expect("a terminal has rows and columns")
}

/// How many columns `row` takes: signs that erase, colour or switch take none.
fn columns_of(row: &str) -> usize {
    let mut inside = false;
    let shown = row.chars().filter(|&sign| {
        let hidden = inside || sign == '\u{1b}';
        inside = hidden && !sign.is_ascii_alphabetic();
        !hidden
    });
    shown.count()
}

/// `tow`, or the program that `TOW_BIN` names: to see that a test fails with an older one.
pub(crate) fn program() -> OsString {
    std::env::var_os("TOW_BIN").unwrap_or_else(|| snapbox::cmd::cargo_bin!("tow").into())
}

impl Terminal {
    /// `tow` with `args` in `folder`.
    pub(crate) fn tow(folder: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&controller).expect("a terminal of ours");
        unlockpt(&controller).expect("a terminal of ours");
        tcsetwinsize(&controller, size(24, 80)).expect("a size");
        let name = ptsname(&controller, Vec::new()).expect("a name").into_string().expect("text");
        let user = OpenOptions::new().read(true).write(true).open(name).expect("its other end");
        let again = || OwnedFd::from(user.try_clone().expect("a handle"));
        let child = Command::new(program())
            .args(args)
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder)
            .env("USER", "ana")
            .env("TERM", "xterm")
            .env("TOW_STORE", format!("sled:{}", folder.join("store").display()))
            .envs(env.iter().copied())
            .stdin(again())
            .stdout(again())
            .stderr(again())
            .spawn()
            .expect("tow starts");
        let controller = File::from(controller);
        let mut reader = controller.try_clone().expect("a handle");
        let (send, bytes) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let screen = vt100::Parser::new(cells(24), cells(80), SCROLLBACK);
        Self { child, controller, bytes, written: String::new(), screen }
    }

    /// Reads what was written meanwhile, waiting up to `within` for it. `false`: nothing came.
    fn take(&mut self, within: Duration) -> bool {
        match self.bytes.recv_timeout(within) {
            Ok(bytes) => {
                self.screen.process(&bytes);
                self.written.push_str(&String::from_utf8_lossy(&bytes));
                true
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    /// Waits until `text` was written.
    pub(crate) fn expect(&mut self, text: &str) {
        self.expect_after(0, text);
    }

    /// Waits until `text` was written after the first `from` bytes.
    pub(crate) fn expect_after(&mut self, from: usize, text: &str) {
        let until = Instant::now() + WITHIN;
        while !self.written.get(from..).is_some_and(|written| written.contains(text)) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(self.take(left), "no {text:?} in:\n{}", self.written);
        }
    }

    /// Sends `signal` to the program, as the keyboard or a supervisor does.
    pub(crate) fn signals(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, signal).expect("it runs");
    }

    /// Makes the window `columns` wide. What was drawn for the old width arrives before the
    /// terminal cuts: as long as a row is wider, it is still the old window.
    pub(crate) fn narrows(&mut self, columns: u16) {
        tcsetwinsize(&self.controller, size(24, columns)).expect("a size");
        let (from, until) = (self.written.len(), Instant::now() + WITHIN);
        let fits =
            |picture: &str| picture.lines().all(|row| columns_of(row) <= usize::from(columns));
        // Between two erasures is a whole picture.
        let whole = |written: &str| {
            let mut pictures: Vec<_> = written.split("\u{1b}[J").skip(1).collect();
            pictures.pop();
            pictures.into_iter().any(fits)
        };
        while !self.written.get(from..).is_some_and(whole) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(self.take(left), "wider than the window:\n{}", self.written);
        }
        self.screen.screen_mut().set_size(cells(24), cells(columns));
    }

    /// Waits until the moving block was drawn `times` more.
    pub(crate) fn redraws(&mut self, times: usize) {
        let drawn = |written: &str| written.matches("\u{1b}[J").count();
        let (before, until) = (drawn(&self.written), Instant::now() + WITHIN);
        while drawn(&self.written) < before + times {
            let left = until.saturating_duration_since(Instant::now());
            assert!(self.take(left), "nothing is drawn any more:\n{}", self.written);
        }
    }

    /// The rows that can be seen now, without those that are empty.
    pub(crate) fn rows(&self) -> Vec<String> {
        let contents = self.screen.screen().contents();
        contents.lines().filter(|row| !row.trim().is_empty()).map(str::to_owned).collect()
    }

    /// How many rows scrolled out of the window.
    pub(crate) fn scrolled(&self) -> usize {
        self.screen.screen().scrollback_len()
    }

    /// Types `keys`.
    pub(crate) fn types(&mut self, keys: &str) {
        self.controller.write_all(keys.as_bytes()).expect("a reader");
    }

    /// Waits for the end; answers the exit code. Everything that was written is taken in.
    pub(crate) fn ends(&mut self) -> i32 {
        let until = Instant::now() + WITHIN;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < until, "it goes on:\n{}", self.written);
            self.take(Duration::from_millis(20));
        };
        while self.take(Duration::from_millis(200)) {}
        status.code().expect("an exit code")
    }
}
