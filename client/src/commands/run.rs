//! `tow run`.

use towpath_proto::v1;
use uuid::Uuid;

use super::{
    App, CommandResult,
    follow::{Follow, work_on},
    pipeline,
};
use crate::{
    args::{Output, WhichFile},
    connect::{ServerConnection, is_new_store},
    embedded, exit,
    failure::Failure,
    json,
    source::{SourceArgs, Taken},
};

/// Jobs at once by default. Source: the file-driven pipeline format.
pub(crate) const PARALLELISM: u32 = 4;

/// Run a pipeline file to its end
///
/// The jobs run in this process. It stops at a gate (exit code 12) unless a person at the terminal
/// opens it, `--yes` was given, or `--wait` was given. Ctrl-C lets running jobs finish, a second
/// one ends them; `tow resume` continues where it stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    file: WhichFile,
    /// Most jobs that run at once, 1 to 1024
    #[arg(short, long, default_value_t = PARALLELISM, value_name = "N")]
    parallelism: u32,
    /// Approve every gate in advance, in your name, as far as it lets you
    #[arg(short, long)]
    yes: bool,
    /// Wait at a gate until it is decided elsewhere
    #[arg(long)]
    wait: bool,
    /// What this machine offers to jobs with `tags`
    #[arg(long, value_delimiter = ',', value_name = "TAG")]
    tags: Vec<String>,
    /// Print the run's id once it has begun, and leave it to the workers of the server
    #[arg(long, conflicts_with = "wait")]
    detach: bool,
    /// An idempotency key: the same key again begins no second run [default: a new one]
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    source: SourceArgs,
}

/// Begins a run and works on it.
pub(crate) async fn run(app: &App, args: RunArgs) -> CommandResult {
    let path = pipeline::locate(args.file.file.as_deref())?;
    let pipeline = pipeline::read(app, &path)?;
    let url = app.url();
    let is_new = is_new_store(&url);
    let connected = if is_new { None } else { Some(ServerConnection::connect(&url).await?) };
    // Before the run is created: a source that cannot be sent must not leave a run that no worker
    // can start.
    let is_remote = connected.as_ref().is_some_and(ServerConnection::is_remote);
    let taken = args.source.take(app, is_remote, &pipeline).await?;
    let mut file = pipeline.message();
    file.source = taken.as_ref().map(|taken| taken.source.clone());
    let request = v1::StartRunRequest {
        file: Some(file),
        parallelism: args.parallelism,
        gates_preapproved: args.yes,
        traceparent: String::new(),
        actor: app.actor(),
        emails: pipeline.emails(),
        // Always a key, also without the option: the request below is repeated when the connection
        // is lost, and must not begin two runs.
        idempotency_key: args.idempotency_key.unwrap_or_else(|| Uuid::now_v7().to_string()),
    };
    let server = match connected {
        Some(server) => server,
        None => {
            // What is refused leaves nothing behind, and opening would make a store.
            embedded::check_start_run(request.clone()).await?;
            ServerConnection::connect(&url).await?
        }
    };
    let (server, run) = begin(app, server, request, taken.as_ref()).await?;
    if args.detach {
        let gone = server.is_ours();
        server.close().await;
        if gone {
            app.say(&format!("No process works on it yet; `tow resume {}` starts.", run.short_id));
        }
        return shown(app, run);
    }
    let following = Follow {
        run: run.id.as_str().into(),
        short_id: run.short_id,
        known: 0,
        slots: Some(args.parallelism),
        wait: args.wait,
        tags: args.tags,
    };
    work_on(app, server, following).await
}

/// Begins the run. A server that goes away meanwhile is asked again: the request has a name, so the
/// run begins once.
async fn begin(
    app: &App,
    mut server: ServerConnection,
    request: v1::StartRunRequest,
    taken: Option<&Taken>,
) -> Result<(ServerConnection, v1::Run), Failure> {
    loop {
        let asked = async {
            // With every try: a new server on another copy of the store may not have the bundle.
            if let Some(taken) = taken {
                taken.send(app, &server).await?;
            }
            let run = server.runs().start_run(request.clone()).await?;
            Ok::<_, Failure>(run.into_inner().run.unwrap_or_default())
        };
        let failure = match asked.await {
            Ok(run) => return Ok((server, run)),
            Err(failure) => failure,
        };
        let waiting = || app.say("Disconnected from the server; sending the request again.");
        server = server.reconnect_after(failure, &app.url(), waiting).await?;
    }
}

fn shown(app: &App, run: v1::Run) -> CommandResult {
    match app.output() {
        Output::Text => app.print(&format!("{}\n", run.id))?,
        Output::Json | Output::Jsonl => app.json(&json::of(&run))?,
    }
    Ok(exit::DONE)
}
