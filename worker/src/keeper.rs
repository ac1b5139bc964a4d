//! The keeper: a small process that starts the scripts of one worker, waits for them, and outlives
//! it.
//!
//! ```text
//! worker ── socket ──▶ keeper ── starts, waits ──▶ script
//!    ▲                   │
//!    └── journal, pipe `end` of the attempt
//! ```
//!
//! How a script ends is told to its parent alone, so the parent must not be the worker, which may
//! be killed. A keeper needs no store, no network and little memory: it is the same program, started
//! anew before any thread of its own, and starts a script without copying an address space.
//! It holds what a script left (its number, unread output, its exit code) until a worker releases
//! the attempt: the one that started it, or the next one, which finds the keeper's socket in the
//! attempts' folder. A keeper that is killed takes no script along; what was running is lost and
//! ended by the worker, which starts another keeper.

mod orphans;
mod process;
mod request;
mod script;
mod socket;
mod starter;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::{Arc, OnceLock},
};

use tokio::{
    process::{Child, Command},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

pub(crate) use request::{Request, Start};
use socket::KeeperSocket;

use crate::open_files;

/// The first argument of a keeper's process.
const ARGUMENT: &str = "keep-scripts";
/// What the names of keepers' sockets begin with.
pub(crate) const PREFIX: &str = "keeper-";
/// Bytes that the path of a socket may have, with its end.
const SOCKET_PATH_BYTES: usize = 108;
/// What a keeper says to a worker that it takes for its own.
const HELLO: u8 = b'k';

/// The program that keepers are made of. It calls [`serve`] with its arguments.
#[derive(Debug)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its first arguments.
    pub arguments: Vec<OsString>,
    /// All variables that it sees.
    pub variables: Vec<(OsString, OsString)>,
}

static PROGRAM: OnceLock<Program> = OnceLock::new();

/// Keeps scripts, if this process was started for that; to be called before anything else of the
/// program. `None`: it was not, and may from now on start itself as a keeper.
pub fn serve_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let own = arguments.next().unwrap_or_default();
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        let arguments = vec![ARGUMENT.into()];
        use_program(Program { path: own_path(own), arguments, variables: Vec::new() });
        return None;
    }
    Some(serve(arguments))
}

/// Makes keepers of `program` from now on, unless that is decided already.
pub fn use_program(program: Program) {
    drop(PROGRAM.set(program));
}

/// Keeps scripts as the last `arguments` of its process say: the name of the socket, and the limit
/// of open files for scripts, if it is another than that of this process.
pub fn serve(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let is_socket = |argument: &OsString| argument.as_bytes().starts_with(PREFIX.as_bytes());
    let mut arguments = arguments.into_iter().skip_while(|argument| !is_socket(argument));
    let Some(socket) = arguments.next() else { return ExitCode::FAILURE };
    let files = arguments.next().and_then(|files| files.to_str()?.parse().ok());
    // Nobody reads what it says: a worker sees that it is gone.
    let served = process::serve(files);
    // In the working directory: nobody connects to it any more.
    drop(std::fs::remove_file(socket));
    served.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// Where the program of this process is.
fn own_path(named: OsString) -> PathBuf {
    // The same program even if another was put in its place since.
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() {
        return own;
    }
    let named = PathBuf::from(named);
    if named.components().count() > 1 {
        return std::path::absolute(&named).unwrap_or(named);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(&named));
    found.into_iter().find(|path| path.is_file()).unwrap_or(named)
}

/// The path of the socket `name` in `folder`, and what must be open while it is used.
///
/// The path of a socket has at most 108 bytes. A folder that lies deeper is reached through its
/// descriptor.
fn socket_path(folder: &Path, name: &str) -> io::Result<(PathBuf, Option<File>)> {
    // A name of more than one part is none that was made here.
    if Path::new(name).components().count() != 1 {
        return Err(ErrorKind::InvalidInput.into());
    }
    let path = folder.join(name);
    if path.as_os_str().len() < SOCKET_PATH_BYTES {
        return Ok((path, None));
    }
    let folder = File::open(folder)?;
    Ok((format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into(), Some(folder)))
}

/// A keeper that this process is connected to.
#[derive(Debug)]
pub(crate) struct Keeper {
    name: String,
    link: Arc<KeeperSocket>,
    /// Whether it has taken this worker for its own.
    greeted: watch::Receiver<bool>,
}

impl Keeper {
    /// Starts a keeper for the attempts in `folder`. Within a runtime.
    pub(crate) fn start(folder: &Path) -> io::Result<Arc<Self>> {
        let program = PROGRAM.get().ok_or_else(|| {
            io::Error::other("BUG: this program cannot start itself to keep scripts")
        })?;
        let name = format!("{PREFIX}{}", uuid::Uuid::now_v7());
        let listener = {
            let (path, _open) = socket_path(folder, &name)?;
            UnixListener::bind(path)?
        };
        let limit = open_files::limit_of_scripts();
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .arg(&name)
            .args(limit.map(|files| files.to_string()))
            // Not the worker's own: that holds its token and its secrets.
            .env_clear()
            .envs(program.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(folder)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            // It outlives whoever reads what the worker prints, and must not hold that open.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal of `tow` must not reach it.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("`{}`: {error}", program.path.display()))
            })?;
        // Not waited for: what is sent before it is ready waits in the socket.
        Self::connect(folder, name, Some(child))
    }

    /// Connects to the keeper `name` in `folder`, which an earlier worker started. `None`: it is
    /// gone. An error says nothing about it: to be tried again.
    pub(crate) fn find(folder: &Path, name: &str) -> io::Result<Option<Arc<Self>>> {
        // Nobody listens to the socket any more, or there is none of that name. Whatever else goes
        // wrong may be over in a moment, and a keeper that is only slow starts scripts yet.
        let gone = [ErrorKind::ConnectionRefused, ErrorKind::NotFound, ErrorKind::InvalidInput];
        match Self::connect(folder, name.to_owned(), None) {
            Ok(keeper) => Ok(Some(keeper)),
            Err(error) if gone.contains(&error.kind()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn connect(folder: &Path, name: String, child: Option<Child>) -> io::Result<Arc<Self>> {
        let socket = {
            let (path, _open) = socket_path(folder, &name)?;
            UnixStream::connect(path)?
        };
        let link = Arc::new(KeeperSocket::new(socket)?);
        let (greet, greeted) = watch::channel(false);
        let served = Arc::clone(&link);
        tokio::spawn(async move {
            served.serve(greet).await;
            // Closed before its end is waited for: a keeper that has a worker does not end.
            drop(served);
            if let Some(mut child) = child {
                drop(child.wait().await);
            }
        });
        Ok(Arc::new(Self { name, link, greeted }))
    }

    /// The name of its socket.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sends `request`, without waiting for it. An error says that the keeper is gone, that it has
    /// not read for so long that no more can wait, or that no system takes so much.
    pub(crate) fn send(&self, request: &Request) -> io::Result<()> {
        self.link.send(request)
    }

    /// Waits until it has answered, and begins nothing any more that was asked for before; or until
    /// it is gone. However long that takes: one that does not run now may go on later, and begin
    /// what an earlier worker asked for.
    pub(crate) async fn answered(&self) {
        let mut greeted = self.greeted.clone();
        // An error: the connection ended, and nothing greets any more.
        drop(greeted.wait_for(|greeted| *greeted).await);
    }

    /// Cancelled when the keeper is gone.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.link.gone
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.link.close();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Marks a process of this test program that is a keeper.
    const AS_KEEPER: &str = "TOWPATH_TEST_KEEPER";

    /// Makes keepers of a program that is none.
    pub(crate) fn use_other_program(path: &str) {
        let variables = Vec::new();
        use_program(Program { path: path.into(), arguments: Vec::new(), variables });
    }

    /// Makes keepers of this test program.
    pub(crate) fn use_test_program() {
        let test = ["--exact", "keeper::tests::keeps_the_scripts_of_other_tests", "--nocapture"];
        use_program(Program {
            path: std::env::current_exe().unwrap(),
            arguments: test.map(OsString::from).into(),
            variables: vec![(AS_KEEPER.into(), "yes".into())],
        });
    }

    /// Not a test of its own: the process that keeps the scripts of other tests.
    #[test]
    fn keeps_the_scripts_of_other_tests() {
        if std::env::var_os(AS_KEEPER).is_some() {
            serve(std::env::args_os());
        }
    }
}
