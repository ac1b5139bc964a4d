//! Reaching a server: the one that has the store open already, or one of our own.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_types::StatusExt as _;
use towpath_engine::code::ErrorCode;
use towpath_proto::v1::{
    self, blobs_service_client::BlobsServiceClient, gates_service_client::GatesServiceClient,
    log_service_client::LogServiceClient, runs_service_client::RunsServiceClient,
    workers_service_client::WorkersServiceClient,
};
use towpath_wire::dial::{dial_socket, dial_tcp, dial_tls};

use crate::{
    channel::AuthorizedChannel,
    credentials::{self, bearer},
    embedded::{Embedded, socket_in},
    failure::Failure,
};

pub(crate) use crate::embedded::store_folder;

/// The folder of the default store.
const STORE_FOLDER: &str = ".towpath";
/// Largest message that is read.
const MESSAGE_BYTES_MAX: usize = 18 * 1024 * 1024;
/// How often to try a store that another process is just opening or closing.
pub(crate) const TRY_FOR: Duration = Duration::from_secs(3);
/// How long an owner may take to say that it is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
pub(crate) const TRY_EVERY: Duration = Duration::from_millis(50);
/// How a server is named where a store could be.
pub(crate) const SERVER_SCHEME: &str = "tcp";
/// Where a server listens by default.
pub(crate) const DEFAULT_PORT: u16 = 7433;
/// How long a server on another machine may take to answer.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// How long to wait for a disconnected server.
const RETURN_WITHIN: Duration = Duration::from_secs(60);
/// Longest pause between two attempts to connect again.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A server that answers.
#[derive(Clone, Debug)]
pub(crate) struct ServerConnection {
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
    /// The server itself, if it lives in this process.
    embedded: Option<Embedded>,
    folder: PathBuf,
    /// It was named as a server: its machine may be another.
    remote: bool,
}

/// `address` with the default port, if it names none.
pub(crate) fn with_port(address: &str) -> String {
    let bare = address.rsplit(']').next().unwrap_or(address);
    // `::1` has no port, and its last part must not be read as one.
    let is_v6 = address.matches(':').count() > 1 && !address.starts_with('[');
    match (is_v6, bare.contains(':')) {
        (true, _) => format!("[{address}]:{DEFAULT_PORT}"),
        (false, true) => address.to_owned(),
        (false, false) => format!("{address}:{DEFAULT_PORT}"),
    }
}

/// Whether `full`, an address with its port, is this machine by its name alone. Other names are not
/// looked up: what a resolver says now may be another answer than the one that is connected to.
fn is_loopback(full: &str) -> bool {
    let host = full.rsplit_once(':').map_or(full, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// A connection to the server at `address`, made when it is first used; and the address in full.
pub(crate) fn dial(address: &str) -> Result<(Channel, String), Failure> {
    let tls = credentials::tls();
    let scheme = if tls.is_some() { "https://" } else { "http://" };
    let bare = address.strip_prefix(scheme).unwrap_or(address).trim_end_matches('/');
    let full = with_port(bare);
    let unusable = || {
        let message = format!("`{address}` is not a valid server address");
        Failure::new(ErrorCode::Usage, message, "Write it as HOST:PORT; `--tls-ca` is for TLS.")
    };
    if bare.is_empty() || bare.contains("://") || bare.contains('/') {
        return Err(unusable());
    }
    // Before the channel exists: the token is in the first frame of the first request, so a server
    // that refuses the connection has it already, and so has every machine in between.
    if bearer().is_some() && tls.is_none() && !is_loopback(&full) {
        let message = format!("the token would be sent to `{full}` without encryption");
        return Err(Failure::known(ErrorCode::InsecureConnect, message));
    }
    let channel = match tls {
        None => dial_tcp(&full).map_err(|_| unusable())?,
        Some(tls) => dial_tls(&full, tls).map_err(|error| {
            let message = format!("the certificates cannot be used with `{full}`: {error}");
            let advice = "Check the files of `--tls-ca`, `--tls-cert` and `--tls-key`.";
            Failure::new(ErrorCode::TlsUnusable, message, advice)
        })?,
    };
    Ok((channel, full))
}

/// Where the store is: as asked, or `.towpath` here or in the nearest folder above that has one.
pub(crate) fn store_url(asked: Option<&str>) -> String {
    if let Some(asked) = asked {
        return asked.to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    let found = here.ancestors().map(|folder| folder.join(STORE_FOLDER)).find(|at| at.is_dir());
    // A path alone: which backend that means is not ours to say.
    found.unwrap_or_else(|| here.join(STORE_FOLDER)).display().to_string()
}

/// Whether opening `url` would make a store.
pub(crate) fn is_new_store(url: &str) -> bool {
    store_folder(url).is_some_and(|folder| !folder.exists())
}

impl ServerConnection {
    /// The server of the store at `url`.
    pub(crate) async fn connect(url: &str) -> Result<Self, Failure> {
        if let Some((SERVER_SCHEME, address)) = url.split_once(':') {
            return Self::connect_remote(address).await;
        }
        let mut owned = None;
        let until = Instant::now() + TRY_FOR;
        // At least one try, also if the machine was suspended between the two lines above.
        while owned.is_none() || Instant::now() < until {
            match Embedded::open(url).await {
                Ok(server) => {
                    let (channel, folder) = (server.connect(), server.folder());
                    let (bearer, embedded) = (None, Some(server));
                    return Ok(Self { channel, bearer, embedded, folder, remote: false });
                }
                Err(failure) => {
                    if !failure.is_owned() {
                        return Err(failure);
                    }
                    owned = Some(failure);
                }
            }
            let folder = store_folder(url).unwrap_or_default();
            if let Ok(channel) = dial_socket(socket_in(&folder)).await {
                // The owner of the store may be stopped: it accepts the connection and does not
                // answer.
                let mut log = LogServiceClient::new(channel.clone());
                let answer = log.describe(v1::DescribeRequest {});
                // A connection alone proves nothing: the kernel accepts it for a process that is
                // stopped.
                if let Ok(Ok(_)) = tokio::time::timeout(ANSWER_WITHIN, answer).await {
                    let bearer = None;
                    return Ok(Self { channel, bearer, embedded: None, folder, remote: false });
                }
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
        Err(owned.unwrap_or_else(|| {
            Failure::new(ErrorCode::Unreachable, "no server answers", "Try again.")
        }))
    }

    /// The server at `address`, if it answers in time and speaks our version.
    async fn connect_remote(address: &str) -> Result<Self, Failure> {
        let (channel, full) = dial(address)?;
        let unreachable = |why: String| {
            let advice = "Check the address, that `tow serve` runs there, and that both sides or \
                          neither use TLS (`--tls-ca`).";
            Failure::new(ErrorCode::Unreachable, format!("`{full}` does not answer{why}"), advice)
        };
        let bearer = bearer();
        let mut log =
            LogServiceClient::new(AuthorizedChannel::new(channel.clone(), bearer.clone()));
        let answer = tokio::time::timeout(DIAL_WITHIN, log.describe(v1::DescribeRequest {})).await;
        let described = match answer {
            Ok(Ok(described)) => described.into_inner(),
            // An older server. The caller reports different versions, not an unreachable server.
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                return Err(status.into());
            }
            // The server is there, and has said why not.
            Ok(Err(status)) if status.get_error_details().error_info().is_some() => {
                return Err(status.into());
            }
            Ok(Err(status)) => return Err(unreachable(format!(": {}", causes(&status)))),
            Err(_) => return Err(unreachable(String::new())),
        };
        let ours = env!("CARGO_PKG_VERSION");
        // Before the first real request: messages of another version could be understood
        // differently.
        if !same_minor_version(ours, &described.version) {
            let theirs = described.version;
            let message = format!("this is tow {ours}, and the server is tow {theirs}");
            let advice = "Use the same version of `tow` on both sides; `tow version` shows both.";
            return Err(Failure::new(ErrorCode::VersionMismatch, message, advice));
        }
        Ok(Self { channel, bearer, embedded: None, folder: PathBuf::new(), remote: true })
    }

    /// Closes this connection, which ended with `failure`, and makes another: a new one, since a
    /// server that hangs keeps the old one. `Err`: another would not help, or none can be made.
    /// `waiting` is called before a server is waited for.
    pub(crate) async fn reconnect_after(
        self,
        failure: Failure,
        url: &str,
        waiting: impl FnOnce(),
    ) -> Result<Self, Failure> {
        let (is_ours, is_remote) = (self.is_ours(), self.is_remote());
        self.close().await;
        // The end of a server in this process is the reason of the failure. Every other failure is
        // an answer of a server that is there.
        if is_ours || !failure.is_unreachable() {
            return Err(failure);
        }
        let mut waiting = Some(waiting);
        // The age of a connection is a limit of the server and nothing that a person has to know.
        if is_remote
            && !failure.is_aged()
            && let Some(waiting) = waiting.take()
        {
            waiting();
        }
        Self::reconnect(url, waiting).await
    }

    /// As [`ServerConnection::connect`], for a server that was there before and may need a while to
    /// return.
    async fn reconnect(url: &str, mut waiting: Option<impl FnOnce()>) -> Result<Self, Failure> {
        let until = Instant::now() + RETURN_WITHIN;
        let mut pause = TRY_EVERY;
        loop {
            match Self::connect(url).await {
                // The owner of a store that is stopped keeps it; it may be continued.
                Err(failure)
                    if (failure.is_unreachable() || failure.is_owned())
                        && Instant::now() < until => {}
                // Every other failure is an answer of a server that is there, and waiting would not
                // change it.
                reached => return reached,
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// As [`ServerConnection::connect`], but never makes a store where there is none.
    pub(crate) async fn connect_existing(url: &str) -> Result<Self, Failure> {
        match store_folder(url) {
            // Opening would create the store, and a command that reads would leave an empty one
            // behind.
            Some(folder) if !folder.exists() => Err(Failure::new(
                ErrorCode::StoreMissing,
                format!("there is no store at `{}`", folder.display()),
                "Begin with `tow run`, or name a store with `--store`.",
            )),
            Some(_) | None => Self::connect(url).await,
        }
    }

    /// The run that `name` names: an id, a prefix of one, or `@latest`.
    pub(crate) async fn run(&self, name: &str) -> Result<v1::Run, Failure> {
        let request = v1::GetRunRequest { run: name.to_owned(), at: None };
        Ok(self.runs().get_run(request).await?.into_inner().run.unwrap_or_default())
    }

    pub(crate) fn runs(&self) -> RunsServiceClient<AuthorizedChannel> {
        RunsServiceClient::new(self.line()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn blobs(&self) -> BlobsServiceClient<AuthorizedChannel> {
        BlobsServiceClient::new(self.line())
    }

    pub(crate) fn gates(&self) -> GatesServiceClient<AuthorizedChannel> {
        GatesServiceClient::new(self.line())
    }

    pub(crate) fn log(&self) -> LogServiceClient<AuthorizedChannel> {
        LogServiceClient::new(self.line())
    }

    pub(crate) fn workers(&self) -> WorkersServiceClient<AuthorizedChannel> {
        WorkersServiceClient::new(self.line())
    }

    fn line(&self) -> AuthorizedChannel {
        AuthorizedChannel::new(self.channel.clone(), self.bearer.clone())
    }

    /// The connection, for a worker's session.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Lets the other programs of this machine reach a server of our own, for as long as we stay.
    pub(crate) fn listen(&self) {
        if let Some(server) = &self.embedded {
            server.listen();
        }
    }

    /// Whether the server lives in this process.
    pub(crate) fn is_ours(&self) -> bool {
        self.embedded.is_some()
    }

    /// Waits until the store of a server in this process takes nothing any more, because a commit
    /// failed. Never ends for another's server: that one says so in its streams, or disconnects.
    pub(crate) async fn stopped(&self) {
        match &self.embedded {
            Some(server) => server.stopped().await,
            // Another process owns the server; its stop is seen as a lost connection.
            None => std::future::pending().await,
        }
    }

    /// Whether it was named as a server: then it has workers of its own, and its files are not
    /// ours.
    pub(crate) fn is_remote(&self) -> bool {
        self.remote
    }

    /// The store's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends a server of our own, and keeps what makes the next start quick.
    pub(crate) async fn close(self) {
        if let Some(server) = self.embedded {
            server.close().await;
        }
    }
}

/// Whether two versions have the same major and minor number.
fn same_minor_version(a: &str, b: &str) -> bool {
    a.split('.').take(2).eq(b.split('.').take(2))
}

/// Why a request did not come through, down to the first cause.
fn causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(deeper) = cause {
        // The innermost cause: the outer ones of the transport only say that there is an error.
        text = deeper.to_string();
        cause = deeper.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_the_default() {
        assert_eq!(with_port("127.0.0.1"), "127.0.0.1:7433");
        assert_eq!(with_port("db.example:9"), "db.example:9");
        assert_eq!(with_port("::1"), "[::1]:7433");
        assert_eq!(with_port("[::1]"), "[::1]:7433");
        assert_eq!(with_port("[::1]:9"), "[::1]:9");
    }

    #[test]
    fn loopback_is_known_by_its_name() {
        for own in ["127.0.0.1:7433", "127.8.8.8:1", "[::1]:7433", "[::ffff:127.0.0.1]:1"] {
            assert!(is_loopback(own), "{own}");
        }
        assert!(is_loopback("localhost:7433") && is_loopback("LocalHost:7433"));
        for other in ["192.0.2.1:7433", "[2001:db8::1]:7433", "db.example:1", "localhost.db:1"] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_at_once() {
        for address in ["", "https://a:1", "a b:1", "a:1/x"] {
            assert_eq!(dial(address).unwrap_err().code(), Some(ErrorCode::Usage), "{address}");
        }
        assert_eq!(dial("http://127.0.0.1:9/").unwrap().1, "127.0.0.1:9");
    }

    #[test]
    fn versions_of_one_series_understand_each_other() {
        assert!(same_minor_version("0.1.0", "0.1.9"));
        assert!(!same_minor_version("0.1.0", "0.2.0"));
    }
}
