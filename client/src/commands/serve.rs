//! `tow serve`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use towpath_server::{House, SystemClock};

use super::{Desk, Finished, follow::Signals};
use crate::{
    cli::Output,
    connect::{TRY_EVERY, TRY_FOR, with_port},
    exit,
    failure::Failure,
};

/// How long streams may take to end when nobody says otherwise, in milliseconds.
const DRAIN_MS: u64 = 10_000;

/// Keep a store and serve it to other machines
///
/// Runs go on with whatever `tow worker` connects, and with every `tow` that names this server with
/// `--server`. A server that is stopped or killed is started again with the same store: runs,
/// leases and workers go on where they were. Settings come from flags, else from the environment,
/// else from the file of `--config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Where to listen, as HOST:PORT [default: 127.0.0.1:7433]
    #[arg(long, env = "TOW_LISTEN", hide_env_values = true, value_name = "ADDR")]
    listen: Option<String>,
    /// Listen in the clear where other machines can hear it
    #[arg(long, env = "TOW_INSECURE", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    insecure: bool,
    /// How long streams may take to end when the server stops, such as `10s` [default: 10s]
    #[arg(long, env = "TOW_DRAIN_TIMEOUT", hide_env_values = true, value_name = "DURATION")]
    drain_timeout: Option<String>,
    /// A TOML file with `listen`, `store`, `insecure`, `drain_timeout`
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
}

/// The settings as they are used.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Config {
    listen: String,
    store: String,
    insecure: bool,
    drain_timeout_ms: u64,
}

/// What is said once everything is ready.
#[derive(Serialize)]
struct ListeningJson {
    address: String,
    store: String,
    socket: String,
    pid: u32,
    version: &'static str,
}

/// Serves a store until it is told to stop.
pub(crate) async fn serve(desk: &Desk, args: ServeArgs) -> Finished {
    let print = args.print_config;
    let config = settings(desk, args)?;
    if print {
        desk.json(&config)?;
        return Ok(exit::DONE);
    }
    let mut signals = Signals::new()?;
    let listener = bind(&config).await?;
    let house = open(&config.store).await?;
    let address = house.serve(listener)?;
    house.listen_locally()?;
    ready(desk, &config, &house, address)?;
    signals.next().await;
    desk.say("Stopping: no new requests, streams end; a second signal ends at once.");
    let clean = tokio::select! {
        clean = house.drain(Duration::from_millis(config.drain_timeout_ms)) => clean,
        () = signals.next() => return Ok(exit::INTERRUPTED),
    };
    if !clean {
        desk.say("Some connections did not end in time and were cut off.");
    }
    Ok(exit::DONE)
}

fn ready(desk: &Desk, config: &Config, house: &House, at: SocketAddr) -> Result<(), Failure> {
    let pid = std::process::id();
    desk.say(&format!("listening on {at}, store {}, pid {pid}", config.store));
    if desk.output() != Output::Text {
        desk.json(&ListeningJson {
            address: at.to_string(),
            store: config.store.clone(),
            socket: house.socket().display().to_string(),
            pid,
            version: env!("CARGO_PKG_VERSION"),
        })?;
    }
    Ok(())
}

fn settings(desk: &Desk, args: ServeArgs) -> Result<Config, Failure> {
    let file = args.config.as_deref().map(read).transpose()?.unwrap_or_default();
    let drain = args.drain_timeout.or(file.drain_timeout);
    let drain_timeout_ms = drain.as_deref().map_or(Ok(DRAIN_MS), duration)?;
    Ok(Config {
        listen: with_port(&args.listen.or(file.listen).unwrap_or_else(|| "127.0.0.1".to_owned())),
        store: match (&desk.global.store, file.store) {
            (None, Some(store)) => store,
            (Some(_), _) | (None, None) => desk.store_url(),
        },
        insecure: args.insecure || file.insecure.unwrap_or_default(),
        drain_timeout_ms,
    })
}

fn read(path: &Path) -> Result<ConfigFile, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?;
    toml::from_str(&text).map_err(|error| {
        let message = format!("`{}`: {}", path.display(), error.to_string().trim_end());
        Failure::new("CONFIG_INVALID", message, "docs/operations.md lists the settings.")
    })
}

/// A length of time, in milliseconds.
pub(crate) fn duration(text: &str) -> Result<u64, Failure> {
    towpath_engine::pipeline_file::duration_ms(text).map_err(|why| {
        let advice = "Write it as `500ms`, `30s`, `5m` or `1h`.";
        Failure::new("USAGE", format!("`{text}` is no length of time: {why}"), advice)
    })
}

async fn bind(config: &Config) -> Result<TcpListener, Failure> {
    let unusable = |error: std::io::Error| {
        Failure::new(
            "ADDRESS_UNUSABLE",
            format!("`{}`: {error}", config.listen),
            "Name an address of this machine and a port that is free.",
        )
    };
    let found = tokio::net::lookup_host(&config.listen).await.map_err(unusable)?;
    let addresses: Vec<SocketAddr> = found.collect();
    let open = addresses.iter().find(|address| !address.ip().is_loopback());
    if let Some(address) = open.filter(|_| !config.insecure) {
        return Err(Failure::new(
            "INSECURE_LISTEN",
            format!("`{address}` can be heard by other machines, and nothing would be encrypted"),
            "Listen on 127.0.0.1 behind a tunnel, or say `--insecure` if the network is trusted.",
        ));
    }
    TcpListener::bind(&addresses[..]).await.map_err(unusable)
}

/// Opens the store; somebody may be just closing it.
async fn open(store: &str) -> Result<House, Failure> {
    let until = Instant::now() + TRY_FOR;
    loop {
        match House::open(store, Arc::new(SystemClock)).await {
            Ok(house) => return Ok(house),
            Err(error) => {
                let failure = Failure::from(error);
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
    }

    #[tokio::test]
    async fn an_address_that_others_can_hear_must_be_asked_for() {
        let config = |insecure| Config {
            listen: "0.0.0.0:0".to_owned(),
            store: "memory:".to_owned(),
            insecure,
            drain_timeout_ms: 1,
        };
        assert_eq!(bind(&config(false)).await.unwrap_err().code, "INSECURE_LISTEN");
        bind(&config(true)).await.unwrap();
    }
}
