//! The same server without a port: over a pipe within this process, and over a socket in the
//! store's folder for the other programs of its owner.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::DuplexStream,
    net::{UnixListener, UnixStream},
};
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::transport::{Channel, Server as TonicServer, Uri};
use towpath_wire::dial::local_endpoint;

use crate::{
    auth::guard::AccessRule,
    limits::REQUESTS_MAX,
    serve::{Serving, limited},
};

/// Only processes of its user connect to the socket.
const SOCKET_MODE: u32 = 0o600;

/// Bytes on the way in one direction of a pipe.
const PIPE_BYTES: usize = 256 * 1024;

/// A client of `serving`, over a pipe.
pub(crate) fn connect(serving: &Serving) -> Channel {
    let (client_end, server_end) = tokio::io::duplex(PIPE_BYTES);
    // Never ends: the server closes its connections when there are no more to come.
    let incoming = tokio_stream::once(Ok::<DuplexStream, io::Error>(server_end))
        .chain(tokio_stream::pending());
    serving.spawn(incoming, queued(), AccessRule::Owner);
    let mut client_end = Some(client_end);
    let dial = tower::service_fn(move |_: Uri| {
        // One pipe is one connection: after it has ended the server is closed, and connecting
        // again cannot succeed.
        let end = client_end.take().ok_or_else(|| io::Error::other("the server is gone"));
        async move { end.map(TokioIo::new) }
    });
    local_endpoint().connect_with_connector_lazy(dial)
}

/// Listens on `path`, the socket in the store's `folder`, which only its owner may enter.
pub(crate) fn listen(serving: &Serving, path: &Path, folder: &Path) -> io::Result<()> {
    // Ours alone: the owner's lock is held, so whatever is there is left over.
    // Only a socket is removed. Any other file of this name was not made by `tow`.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // The folder already keeps others out; these two hold when its mode is changed later, which
    // the running server would not notice.
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    let owner = fs::metadata(folder)?.uid();
    let incoming = UnixListenerStream::new(listener).filter_map(move |accepted| {
        accepted.map(|stream| is_owned(&stream, owner).then_some(stream)).transpose()
    });
    serving.spawn(incoming, queued(), AccessRule::Owner);
    Ok(())
}

/// Whether a process of the user `owner` is at the other end of `stream`, by the word of the
/// kernel. Clients need no token here, so a connection whose user is unknown is closed too.
fn is_owned(stream: &UnixStream, owner: u32) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == owner => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = ?peer.pid(), "local connection of another user closed");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "local connection closed: its user is not known");
            false
        }
    }
}

/// A server whose clients wait for room instead of being refused: they are its owner's.
fn queued() -> TonicServer {
    limited().concurrency_limit_per_connection(REQUESTS_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Server, SystemClock};

    #[tokio::test]
    async fn the_socket_is_for_processes_of_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sled:{}", folder.path().display());
        let server = Server::open(&url, Arc::new(SystemClock)).await.unwrap();
        server.listen_locally().unwrap();
        let mode = fs::metadata(server.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let (here, _there) = UnixStream::pair().unwrap();
        let own = fs::metadata(folder.path()).unwrap().uid();
        assert!(is_owned(&here, own));
        assert!(!is_owned(&here, own + 1));
        server.close().await;
    }

    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    #[tokio::test]
    async fn a_process_of_another_user_is_not_answered() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sled:{}", folder.path().display());
        let server = Server::open(&url, Arc::new(SystemClock)).await.unwrap();
        server.listen_locally().unwrap();
        // As if the modes had been changed since: the kernel still says who connects.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(server.socket(), Permissions::from_mode(0o666)).unwrap();
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
             s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'); print(len(s.recv(99)))";
        let asked = |uid: u32| {
            let mut command = std::process::Command::new("python3");
            command.args(["-c", script]).arg(server.socket());
            std::os::unix::process::CommandExt::uid(&mut command, uid);
            tokio::task::spawn_blocking(move || command.output())
        };
        let own = fs::metadata(folder.path()).unwrap().uid();
        let (Ok(own), Ok(other)) = (asked(own).await.unwrap(), asked(65_534).await.unwrap()) else {
            eprintln!("skipped: only root with python3 can connect as another user");
            return;
        };
        assert_ne!(String::from_utf8_lossy(&own.stdout).trim(), "0", "the owner is answered");
        let said = String::from_utf8_lossy(&other.stdout);
        assert!(["", "0"].contains(&said.trim()), "another user is answered: {said}");
        server.close().await;
    }
}
