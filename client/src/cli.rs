//! The command line. Help texts are the doc comments here.

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, parser::ValueSource};

use crate::{args::Global, commands};

/// Database migrations as pipelines, with every step in a log that can be proven
#[derive(Debug, Parser)]
#[command(name = "tow", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done · 2 usage · 3 not found · 4 nothing to do · 5 invalid \
                        file · 6 conflict · 7 damaged\n10 failed · 11 partial · 12 at a gate · 13 \
                        rejected · 14 cancelled · 15 timed out · 40 unauthenticated · 41 forbidden · 42 unreachable · 44 limit reached · 130 interrupted")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
    /// The name of the program.
    #[arg(skip)]
    pub(crate) name: String,
}

impl Cli {
    /// The parsed command line. Of a store and a server, an option takes precedence over the
    /// environment.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches()?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.name = matches.subcommand_name().unwrap_or_default().to_owned();
        let spelt = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
        cli.global.context_spelt = spelt("context");
        if spelt("context") && (spelt("store") || spelt("server")) {
            let both = "`--context` cannot be used together with `--store` or `--server`";
            let error = clap::error::ErrorKind::ArgumentConflict;
            return Err(Self::command().error(error, both));
        }
        match (spelt("store"), spelt("server")) {
            (true, true) => {
                let both = "`--store` and `--server` cannot be used together";
                let error = clap::error::ErrorKind::ArgumentConflict;
                return Err(Self::command().error(error, both));
            }
            (true, false) => cli.global.server = None,
            (false, _) => {}
        }
        Ok(cli)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a first pipeline file
    Init(commands::init::InitArgs),
    /// Check a pipeline file and show every problem
    Validate(commands::validate::ValidateArgs),
    /// Show what a run would do, without doing it
    Plan(commands::plan::PlanArgs),
    /// Draw a pipeline's jobs and needs
    Graph(commands::graph::GraphArgs),
    /// Run a pipeline file to its end
    Run(commands::run::RunArgs),
    /// Continue a run where it stopped
    Resume(commands::resume::ResumeArgs),
    /// Show a run and its jobs
    Status(commands::status::StatusArgs),
    /// Follow a run until it ends or waits
    Watch(commands::watch::WatchArgs),
    /// Explain why a job is in its state
    Why(commands::why::WhyArgs),
    /// Show what a job printed
    Logs(commands::logs::LogsArgs),
    /// List runs, newest first
    #[command(visible_alias = "ls")]
    List(commands::list::ListArgs),
    /// Approve the gate of a job
    Approve(commands::approve::ApproveArgs),
    /// Reject the gate of a job
    Reject(commands::reject::RejectArgs),
    /// Run a failed or skipped job again
    Retry(commands::retry::RetryArgs),
    /// End a run
    Cancel(commands::cancel::CancelArgs),
    /// Show the stored log, one JSON object a line
    Events(commands::events::EventsArgs),
    /// Serve a store to other machines
    #[cfg(feature = "server")]
    Serve(commands::serve::ServeArgs),
    /// Run jobs for a server
    Worker(commands::worker::WorkerArgs),
    /// List, drain and resume workers
    Workers(commands::workers::WorkersArgs),
    /// Issue, list and revoke access tokens
    #[cfg(feature = "server")]
    Token(commands::token::TokenArgs),
    /// Manage named servers
    Context(commands::context::ContextArgs),
    /// Issue and revoke certificates of servers and workers
    #[cfg(feature = "server")]
    Pki(commands::pki::PkiArgs),
    /// Start a worker for every job that waits for one
    Autoscale(commands::autoscale::AutoscaleArgs),
    /// Import the JSONL run file of another tool
    Import(commands::import::ImportArgs),
    /// Write a run as a JSONL run file
    Export(commands::export::ExportArgs),
    /// Print the JSON Schema of the pipeline file
    Schema(commands::schema::SchemaArgs),
    /// Run a small migration in a temporary folder, kill it, and resume it
    #[cfg(feature = "server")]
    Demo(commands::demo::DemoArgs),
    /// Check the store: read the log, rebuild every view, compare
    #[cfg(feature = "server")]
    Doctor(commands::doctor::DoctorArgs),
    /// Write the whole store to one file
    #[cfg(feature = "server")]
    Backup(commands::backup::BackupArgs),
    /// Create a store from a backup
    #[cfg(feature = "server")]
    Restore(commands::restore::RestoreArgs),
    /// Print shell completions
    Completions(commands::completions::CompletionsArgs),
    /// Show the version of this program and of the server
    Version(commands::version::VersionArgs),
}
