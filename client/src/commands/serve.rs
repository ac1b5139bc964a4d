//! `tow serve`.

mod tables;

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use towpath_engine::code::ErrorCode;
use towpath_server::{
    Access, CertificatesError, LEASE_MS, Limits, ServeError, ServeTls, Server, StoreUrl,
    SystemClock, auth::oidc::OidcError,
};
use towpath_wire::dial::PemPair;

use tables::{LimitsTable, OidcTable, as_json};

use super::{App, CommandResult, duration, follow::Signals};
use crate::{
    args::Output,
    connect::{TRY_EVERY, TRY_FOR, with_port},
    exit,
    failure::Failure,
    telemetry::Telemetry,
};

/// How long streams may take to end by default, in milliseconds.
const DRAIN_MS: u64 = 10_000;
/// What `--lease` may say, in milliseconds. Shorter, and a busy machine loses what runs; longer,
/// and the jobs of a dead machine wait.
const LEASES_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// Serve a store to other machines
///
/// Jobs run on workers that connect with `tow worker`; clients name this server with `--server`. A
/// server that was stopped or killed is started again with the same store: runs, leases and workers
/// continue. Settings come from flags, else from the environment, else from the file of `--config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Where to listen, as HOST:PORT [default: 127.0.0.1:7433]
    #[arg(long, env = "TOW_LISTEN", hide_env_values = true, value_name = "ADDR")]
    listen: Option<String>,
    /// Listen without encryption on an address that other machines can reach
    #[arg(long, env = "TOW_INSECURE", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    insecure: bool,
    /// How long streams may take to end when the server stops, such as `10s` [default: 10s]
    #[arg(long, env = "TOW_DRAIN_TIMEOUT", hide_env_values = true, value_name = "DURATION")]
    drain_timeout: Option<String>,
    /// How long a worker may send no heartbeat before its leases expire, 1s to 1h [default: 30s]
    #[arg(long, env = "TOW_LEASE", hide_env_values = true, value_name = "DURATION")]
    lease: Option<String>,
    /// Require a token or a certificate of every client [default: as soon as the store has tokens]
    #[arg(long, env = "TOW_AUTH", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    auth: bool,
    /// The server's certificate; connections then use TLS, and every client authenticates
    #[arg(long, env = "TOW_TLS_CERT", hide_env_values = true, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate
    #[arg(long, env = "TOW_TLS_KEY", hide_env_values = true, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// The authority that certificates of workers must come from
    #[arg(long, env = "TOW_CLIENT_CA", hide_env_values = true, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// The authority's list of revoked certificates; see `tow pki revoke`
    #[arg(long, env = "TOW_CLIENT_CRL", hide_env_values = true, value_name = "FILE")]
    client_crl: Option<PathBuf>,
    /// A TOML file with `listen`, `store`, `insecure`, `drain_timeout`, `lease`, `auth`,
    /// `tls_cert`, `tls_key`, `client_ca`, `client_crl`, `otlp`, and tables `limits` and `oidc`
    #[arg(long, env = "TOW_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings as they would be used, as JSON, and do nothing
    #[arg(long)]
    print_config: bool,
}

/// What a configuration file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    listen: Option<String>,
    store: Option<String>,
    insecure: Option<bool>,
    drain_timeout: Option<String>,
    lease: Option<String>,
    auth: Option<bool>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    otlp: Option<String>,
    client_crl: Option<PathBuf>,
    oidc: Option<OidcTable>,
    #[serde(default)]
    limits: LimitsTable,
}

/// The settings as they are used.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Config {
    listen: String,
    #[serde(serialize_with = "shown_store")]
    store: String,
    insecure: bool,
    drain_timeout_ms: u64,
    lease_ms: u64,
    auth: bool,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    /// Where spans and metrics go if the environment does not say.
    otlp: Option<String>,
    client_crl: Option<PathBuf>,
    oidc: Option<OidcTable>,
    #[serde(serialize_with = "as_json")]
    limits: Limits,
}

/// The URL of a store as settings are printed: without credentials.
fn shown_store<S: serde::Serializer>(url: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&StoreUrl::shown(url))
}

impl Config {
    /// Whether every client must authenticate, also without tokens in the store.
    fn is_strict(&self) -> bool {
        self.auth || self.tls_cert.is_some() || self.oidc.is_some()
    }
}

/// The line that is printed once the server is ready.
#[derive(Serialize)]
struct ListeningJson {
    address: String,
    store: String,
    socket: String,
    pid: u32,
    version: &'static str,
}

impl ServeArgs {
    /// Where the configuration file wants spans and metrics to go.
    pub(crate) fn otlp(&self) -> Result<Option<String>, Failure> {
        Ok(self.config.as_deref().map(read).transpose()?.and_then(|file| file.otlp))
    }
}

/// Serves a store until a signal arrives.
pub(crate) async fn serve(app: &App, args: ServeArgs, telemetry: &Telemetry) -> CommandResult {
    let print = args.print_config;
    let config = settings(app, args)?;
    if print {
        app.json(&config)?;
        return Ok(exit::DONE);
    }
    // Before the store is opened: a signal that comes while a long log is read must end the process
    // in the ordinary way.
    let mut signals = Signals::new()?;
    let access = access(&config)?;
    // Bound before the store is opened and served after it: a wrong address fails at once, and no
    // client is answered by a server without a log.
    let listener = bind(&config).await?;
    let server = open(&config).await?;
    let address = server.serve(listener, access).map_err(unserved)?;
    // An error here ends the server: without the socket no other `tow` of the machine can use the
    // store, and `tow token` would wait.
    server.listen_locally()?;
    if telemetry.wants_metrics()
        && let Err(error) = server.export_metrics().await
    {
        tracing::warn!(%error, "failed to start the export of metrics");
    }
    ready(app, &config, &server, address)?;
    tracing::info!(%address, store = StoreUrl::shown(&config.store), "server started");
    tokio::select! {
        () = signals.next() => {}
        () = server.stopped().cancelled() => {
            let message = "the store stopped because a commit failed";
            let advice = "The log of this program says why. Start it again to continue.";
            return Err(Failure::new(ErrorCode::StoreUnavailable, message, advice));
        }
    }
    tracing::info!("server stopping");
    app.say("Stopping: no new requests, streams end; a second signal ends at once.");
    let clean = tokio::select! {
        clean = server.drain(Duration::from_millis(config.drain_timeout_ms)) => clean,
        () = signals.next() => return Ok(exit::INTERRUPTED),
    };
    if !clean {
        app.say("Some connections did not end in time and were closed.");
    }
    tracing::info!(clean, "server stopped");
    Ok(exit::DONE)
}

fn ready(app: &App, config: &Config, server: &Server, at: SocketAddr) -> Result<(), Failure> {
    let pid = std::process::id();
    app.say(&format!("listening on {at}, store {}, pid {pid}", StoreUrl::shown(&config.store)));
    if app.output() != Output::Text {
        app.json(&ListeningJson {
            address: at.to_string(),
            store: StoreUrl::shown(&config.store),
            socket: server.socket().display().to_string(),
            pid,
            version: env!("CARGO_PKG_VERSION"),
        })?;
    }
    Ok(())
}

fn settings(app: &App, args: ServeArgs) -> Result<Config, Failure> {
    let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
    let (drain, lease) = (args.drain_timeout.or(file.drain_timeout), args.lease.or(file.lease));
    let drain_timeout_ms = drain.as_deref().map_or(Ok(DRAIN_MS), duration)?;
    Ok(Config {
        listen: with_port(&args.listen.or(file.listen).unwrap_or_else(|| "127.0.0.1".to_owned())),
        store: match (&app.global.store, file.store) {
            // `--store` and `TOW_STORE` are one value here, and both take precedence over the file.
            (None, Some(store)) => store,
            (Some(_), _) | (None, None) => app.store_url(),
        },
        insecure: args.insecure || file.insecure.unwrap_or_default(),
        drain_timeout_ms,
        lease_ms: lease.as_deref().map_or(Ok(LEASE_MS), lease_ms)?,
        auth: args.auth || file.auth.unwrap_or_default(),
        tls_cert: args.tls_cert.or(file.tls_cert),
        tls_key: args.tls_key.or(file.tls_key),
        client_ca: args.client_ca.or(file.client_ca),
        otlp: file.otlp,
        client_crl: args.client_crl.or(file.client_crl),
        oidc: file.oidc,
        limits: file.limits.limits()?,
    })
}

/// The settings of authentication, with the files read.
fn access(config: &Config) -> Result<Access, Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| Failure::file(path, &error));
    let tls = match (&config.tls_cert, &config.tls_key, &config.client_ca) {
        (Some(certificate), Some(key), ca) => Some(ServeTls {
            own: PemPair { certificate: read(certificate)?, key: read(key)? },
            client_ca: ca.as_deref().map(read).transpose()?,
            client_crl: config.client_crl.clone(),
        }),
        (None, None, None) => None,
        // A certificate without its key would make the server listen without encryption, although
        // one was asked for.
        (Some(_), None, _) | (None, Some(_), _) | (None, None, Some(_)) => {
            let message = "`--client-ca`, `--tls-cert` and `--tls-key` go together";
            let advice = "`tow pki issue --server HOST` makes a certificate and its key.";
            return Err(Failure::new(ErrorCode::Usage, message, advice));
        }
    };
    if config.client_crl.is_some() && config.client_ca.is_none() {
        let advice = "Name the authority whose list it is with `--client-ca`.";
        return Err(Failure::new(ErrorCode::Usage, "`--client-crl` needs `--client-ca`", advice));
    }
    let oidc = config.oidc.clone().map(OidcTable::settings).transpose()?;
    // What people were told to connect to is a good name, whatever it stands for in `/etc/hosts`.
    let name = config.listen.rsplit_once(':').map(|(host, _)| host.to_owned());
    Ok(Access { strict: config.is_strict(), tls, oidc, name, limits: config.limits })
}

fn unserved(error: ServeError) -> Failure {
    match error {
        ServeError::Port(error) => error.into(),
        ServeError::Certificates(CertificatesError::Unreadable { path, source }) => {
            Failure::file(&path, &source)
        }
        ServeError::Oidc(OidcError::Unreadable { path, source }) => Failure::file(&path, &source),
        ServeError::Oidc(error) => {
            let advice = "Put the issuer's JWK set there, as its `jwks_uri` gives it.";
            Failure::new(ErrorCode::ConfigInvalid, error.to_string(), advice)
        }
        ServeError::Certificates(error) => {
            let advice = "Check the files of `--client-ca` and `--client-crl`.";
            Failure::new(ErrorCode::TlsUnusable, error.to_string(), advice)
        }
        ServeError::Tls(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let message = format!("the certificates cannot be used: {error}");
            let message = cause.map_or(message.clone(), |cause| format!("{message}: {cause}"));
            let advice = "Check the files of `--tls-cert`, `--tls-key` and `--client-ca`.";
            Failure::new(ErrorCode::TlsUnusable, message, advice)
        }
    }
}

fn read(path: &Path) -> Result<ConfigFile, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?;
    toml::from_str(&text).map_err(|error| {
        let message = format!("`{}`: {}", path.display(), error.to_string().trim_end());
        Failure::new(
            ErrorCode::ConfigInvalid,
            message,
            "docs/reference/settings.md lists the settings.",
        )
    })
}

/// How long a lease lasts, in milliseconds.
fn lease_ms(text: &str) -> Result<u64, Failure> {
    let ms = duration(text)?;
    if LEASES_MS.contains(&ms) {
        return Ok(ms);
    }
    let message = format!("a lease of `{text}` is not between 1s and 1h");
    let advice = "Leave it out, or choose some times the longest pause that you expect.";
    Err(Failure::new(ErrorCode::Usage, message, advice))
}

async fn bind(config: &Config) -> Result<TcpListener, Failure> {
    let unusable = |error: std::io::Error| {
        Failure::new(
            ErrorCode::AddressUnusable,
            format!("`{}`: {error}", config.listen),
            "Name an address of this machine and a port that is free.",
        )
    };
    let found = tokio::net::lookup_host(&config.listen).await.map_err(unusable)?;
    let addresses: Vec<SocketAddr> = found.collect();
    // One address of several is enough: a name may resolve to loopback and to an interface.
    let open = addresses.iter().find(|address| !address.ip().is_loopback());
    if let Some(address) = open.filter(|_| !config.insecure && config.tls_cert.is_none()) {
        return Err(Failure::new(
            ErrorCode::InsecureListen,
            format!("`{address}` is reachable from other machines, and nothing would be encrypted"),
            "Use `--tls-cert` and `--tls-key`, or say `--insecure` if the network is trusted.",
        ));
    }
    TcpListener::bind(&addresses[..]).await.map_err(unusable)
}

/// Opens the store; another process may be just closing it.
async fn open(config: &Config) -> Result<Server, Failure> {
    let until = Instant::now() + TRY_FOR;
    loop {
        let clock = Arc::new(SystemClock);
        match Server::open_with_lease(&config.store, clock, config.lease_ms).await {
            Ok(server) => return Ok(server),
            Err(error) => {
                let failure = Failure::from(error);
                // A supervisor starts the new server while the old one still writes its last
                // commit.
                if !failure.is_owned() || Instant::now() >= until {
                    return Err(failure);
                }
            }
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_file_says_what_it_may_and_nothing_else() {
        let file: ConfigFile = toml::from_str("listen = \"[::1]:9\"\ninsecure = true\n").unwrap();
        assert_eq!(file.listen.as_deref(), Some("[::1]:9"));
        assert!(toml::from_str::<ConfigFile>("lisen = \"x\"\n").is_err());
        let file: ConfigFile =
            toml::from_str("[limits]\nrate = 9\nconnection_age = \"5m\"\n").unwrap();
        let limits = file.limits.limits().unwrap();
        assert_eq!((limits.rate, limits.connection_age), (9, Duration::from_secs(300)));
        assert_eq!(limits.burst, Limits::default().burst);
        for wrong in ["rate = 0", "rates = 1", "rate = -1"] {
            assert!(toml::from_str::<ConfigFile>(&format!("[limits]\n{wrong}\n")).is_err());
        }
        let file: ConfigFile = toml::from_str("[limits]\nconnection_age = \"0s\"\n").unwrap();
        assert!(file.limits.limits().is_err());
    }

    #[test]
    fn a_lease_is_neither_too_short_nor_too_long() {
        assert_eq!(lease_ms("1s").unwrap(), 1_000);
        assert_eq!(lease_ms("1h").unwrap(), 3_600_000);
        assert_eq!(lease_ms("999ms").unwrap_err().code(), Some(ErrorCode::Usage));
        assert_eq!(lease_ms("3601s").unwrap_err().code(), Some(ErrorCode::Usage));
    }

    #[tokio::test]
    async fn an_address_that_others_can_hear_must_be_asked_for() {
        let config = |insecure| Config {
            listen: "0.0.0.0:0".to_owned(),
            store: "memory:".to_owned(),
            insecure,
            drain_timeout_ms: 1,
            lease_ms: LEASE_MS,
            auth: false,
            tls_cert: None,
            tls_key: None,
            client_ca: None,
            otlp: None,
            client_crl: None,
            oidc: None,
            limits: Limits::default(),
        };
        assert_eq!(bind(&config(false)).await.unwrap_err().code(), Some(ErrorCode::InsecureListen));
        bind(&config(true)).await.unwrap();
    }
}
