//! The same server without a port: over a pipe within this process, and over a socket in the
//! store's folder for the other programs of its owner.

use std::{fs, io, os::unix::fs::FileTypeExt as _, path::PathBuf};

use hyper_util::rt::TokioIo;
use tokio::{
    io::DuplexStream,
    net::{UnixListener, UnixStream},
};
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::{
    House,
    auth::guard::Door,
    limits::REQUESTS_MAX,
    serve::{STREAM_WINDOW_BYTES, limited},
};

/// The address a local client seems to talk to.
pub const LOCAL_URI: &str = "http://local";

/// Bytes on the way in one direction of a pipe.
const PIPE_BYTES: usize = 256 * 1024;

impl House {
    /// A client of this server, over a pipe.
    pub fn connect(&self) -> Channel {
        let (client_end, server_end) = tokio::io::duplex(PIPE_BYTES);
        // Never ends: the server closes its connections when there are no more to come.
        let incoming = tokio_stream::once(Ok::<DuplexStream, io::Error>(server_end))
            .chain(tokio_stream::pending());
        self.spawn_serving(incoming, queued(), Door::Owner);
        let mut client_end = Some(client_end);
        let dial = tower::service_fn(move |_: Uri| {
            let end = client_end.take().ok_or_else(|| io::Error::other("the server is gone"));
            async move { end.map(TokioIo::new) }
        });
        endpoint().connect_with_connector_lazy(dial)
    }

    /// Listens on the socket in the store's folder, which only its owner may enter.
    pub fn listen_locally(&self) -> io::Result<()> {
        let path = self.socket();
        // Ours alone: the owner's lock is held, so whatever is there is left over.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        self.spawn_serving(UnixListenerStream::new(listener), queued(), Door::Owner);
        Ok(())
    }
}

/// A server whose clients wait for room instead of being refused: they are its owner's.
fn queued() -> Server {
    limited().concurrency_limit_per_connection(REQUESTS_MAX)
}

/// A client of the server that listens on the socket at `path`.
pub async fn dial_socket(path: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector(dial).await
}

fn endpoint() -> Endpoint {
    Endpoint::from_static(LOCAL_URI)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES * 4)
}
