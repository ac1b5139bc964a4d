//! The connections of a port: how many there are, those that never say anything, and how much is
//! read of those that have proven nothing.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};
use tonic::transport::server::{Connected, TlsConnectInfo};

use crate::limits::{
    HEALTH_BYTES, Limit, Limits, REQUESTS_MAX, SURPLUS_MAX, SURPLUS_WITHIN, UNPROVEN_BYTES_MAX,
};

/// Counts the connections of a port.
#[derive(Debug)]
pub(crate) struct Connections {
    limits: Limits,
    open: Arc<AtomicUsize>,
    /// Those beyond the bound, which only get an error.
    surplus: Arc<AtomicUsize>,
}

/// One connection, as every request of it knows it.
#[derive(Clone, Debug)]
pub(crate) struct Connection(Arc<State>);

#[derive(Debug)]
struct State {
    peer: Option<IpAddr>,
    /// There are more connections than there may be.
    surplus: bool,
    /// A request was admitted.
    admitted: AtomicBool,
    /// Its client has proven who it is, or does not have to.
    proven: AtomicBool,
    /// Bytes that are read before that.
    credit: AtomicUsize,
    /// The task that waits for more than these.
    reader: AtomicWaker,
    /// Requests that are worked on.
    busy: AtomicUsize,
    /// When its streams end.
    ends_at: Instant,
}

/// A request that is being worked on, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Connection);

/// A place among the connections; given back when dropped.
#[derive(Debug)]
struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// A place among those that `taken` counts, if there are fewer than `most`.
    fn among(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(taken));
        // Counted first and compared after: two connections at once cannot both take the last
        // place. The guard gives the count back if there is none.
        (taken.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, open: Arc::default(), surplus: Arc::default() }
    }

    /// Accepts a connection. `None`: there are so many that this one gets no answer.
    pub(crate) fn take_in(&self, stream: TcpStream) -> Option<ConnectionIo> {
        let regular = Permit::among(&self.open, self.limits.connections);
        let surplus = regular.is_none();
        let Some(place) = regular.or_else(|| Permit::among(&self.surplus, SURPLUS_MAX)) else {
            tracing::warn!(
                max = self.limits.connections,
                "connection refused: too many connections"
            );
            return None;
        };
        let patience = if surplus { SURPLUS_WITHIN } else { self.limits.first_request_within };
        let age = self.limits.connection_age;
        // Not all at once, when all have come at once.
        let share = f64::from(uuid::Uuid::now_v7().as_u128() as u32) / f64::from(u32::MAX);
        let state = State {
            // An IPv4 address over an IPv6 socket is the same machine.
            peer: stream.peer_addr().ok().map(|peer| peer.ip().to_canonical()),
            surplus,
            admitted: AtomicBool::new(false),
            proven: AtomicBool::new(false),
            credit: AtomicUsize::new(UNPROVEN_BYTES_MAX),
            reader: AtomicWaker::new(),
            busy: AtomicUsize::new(0),
            // A random tenth more, so that a thousand workers that connected after a restart do not
            // all connect again at one moment.
            ends_at: Instant::now() + age + age.mul_f64(share / 10.0),
        };
        let patience = Some(Box::pin(tokio::time::sleep(patience)));
        Some(ConnectionIo { stream, line: Connection(Arc::new(state)), patience, _place: place })
    }
}

impl Connection {
    /// The connection that a request came over, if it came to a port.
    pub(crate) fn of(extensions: &tonic::codegen::http::Extensions) -> Option<&Self> {
        let tls = || extensions.get::<TlsConnectInfo<Self>>().map(TlsConnectInfo::get_ref);
        extensions.get::<Self>().or_else(tls)
    }

    /// Begins a request.
    pub(crate) fn begin(&self, connections: usize) -> Result<InFlight, Limit> {
        if self.0.surplus {
            return Err(Limit::ConnectionsTooMany { max: connections });
        }
        // Made before the comparison: its drop takes the count back on the refusal.
        let busy = InFlight(self.clone());
        if self.0.busy.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
            return Err(Limit::RequestsTooMany);
        }
        Ok(busy)
    }

    /// Notes that a request was admitted, of a client that `proved` who it is, or that asked for
    /// what needs no proof.
    pub(crate) fn admit(&self, proved: bool) {
        self.0.admitted.store(true, Ordering::Relaxed);
        if proved {
            self.0.proven.store(true, Ordering::Release);
        } else {
            self.0.credit.fetch_add(HEALTH_BYTES, Ordering::Relaxed);
        }
        self.0.reader.wake();
    }

    /// Whom requests without a name are counted as.
    pub(crate) fn peer(&self) -> String {
        self.0.peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string())
    }

    /// Comes back when streams of this connection end.
    pub(crate) async fn aged(&self) {
        tokio::time::sleep_until(self.0.ends_at).await;
    }
}

/// The bytes of a connection, which ends if no request comes in time.
#[derive(Debug)]
pub(crate) struct ConnectionIo {
    stream: TcpStream,
    line: Connection,
    /// Until a request was admitted.
    patience: Option<Pin<Box<Sleep>>>,
    _place: Permit,
}

impl Connected for ConnectionIo {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.line.clone()
    }
}

impl AsyncRead for ConnectionIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(patience) = &mut this.patience {
            // The first accepted request ends the time limit of the connection; streams may last.
            if this.line.0.admitted.load(Ordering::Relaxed) {
                this.patience = None;
            } else if patience.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        let state = &this.line.0;
        if state.proven.load(Ordering::Acquire) {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        // Before proof a client could keep the transport busy with frames that no request needs
        // (PING, SETTINGS). Nothing is read beyond the credit; if a request that came within it is
        // let in, reading continues, else the patience above ends the connection.
        state.reader.register(cx.waker());
        if state.proven.load(Ordering::Acquire) {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let most = state.credit.load(Ordering::Relaxed).min(buffer.remaining());
        if most == 0 {
            return Poll::Pending;
        }
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        state.credit.fetch_sub(read, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ConnectionIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
