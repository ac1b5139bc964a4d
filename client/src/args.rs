//! Options and arguments that several commands share.

use std::path::PathBuf;

use clap::ValueEnum;
use towpath_engine::code::ErrorCode;

use crate::{embedded::store_usages, failure::Failure};

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Global {
    /// Where runs are kept.
    #[arg(long, global = true, env = "TOW_STORE", hide_env_values = true, value_name = "URL")]
    #[arg(help = format!("Where runs are kept: {} [default: the nearest .towpath]", store_usages(false)))]
    pub(crate) store: Option<String>,
    /// The server that keeps the runs, as HOST:PORT, instead of a store
    #[arg(long, global = true, env = "TOW_SERVER", hide_env_values = true, value_name = "ADDR")]
    pub(crate) server: Option<String>,
    /// The server by its name; see `tow context`
    #[arg(long, global = true, env = "TOW_CONTEXT", hide_env_values = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The context was named on the command line.
    #[arg(skip)]
    pub(crate) context_spelt: bool,
    /// The certificate authority of the server; connections then use TLS
    #[arg(long, global = true, env = "TOW_TLS_CA", hide_env_values = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Who you are, as `human:NAME`, `agent:NAME` or `service:NAME` [default: human:$USER]
    #[arg(long, global = true, env = "TOW_ACTOR", hide_env_values = true, value_name = "ACTOR")]
    pub(crate) actor: Option<String>,
    /// What goes to standard output
    #[arg(long, global = true, value_enum, default_value = "text", value_name = "FORM")]
    pub(crate) output: Output,
    /// Draw with ASCII only
    #[arg(long, global = true, env = "TOW_ASCII", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) ascii: bool,
}

/// What goes to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// One JSON object
    Json,
    /// One JSON object a line
    Jsonl,
}

/// Which run: an id, an unambiguous prefix, or `@latest`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WhichRun {
    /// The run: an id, the beginning of one, or `@latest`
    #[arg(default_value = "@latest", value_name = "RUN")]
    pub(crate) run: String,
}

/// Which run, for commands whose first argument is a job.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RunArg {
    /// The run: an id, the beginning of one, or `@latest`
    #[arg(long, default_value = "@latest", value_name = "RUN")]
    pub(crate) run: String,
}

/// Which pipeline file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WhichFile {
    /// The pipeline file [default: towpath.yml, towpath.yaml or pulsaride-pipeline.yml]
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// A duration, in milliseconds.
pub(crate) fn duration(text: &str) -> Result<u64, Failure> {
    towpath_pipeline::file::duration_ms(text).map_err(|why| {
        let advice = "Write it as `500ms`, `30s`, `5m` or `1h`.";
        Failure::new(ErrorCode::Usage, format!("`{text}` is not a valid duration: {why}"), advice)
    })
}
