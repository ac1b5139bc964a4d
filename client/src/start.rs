//! Starts the command of the command line: its logging, its telemetry, its server.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use towpath_engine::{code::ErrorCode, ids::Actor};

use crate::{
    app::{App, CommandResult},
    args::Global,
    cli::{Cli, Command},
    commands::{
        approve, autoscale, cancel, completions, context, events, export, graph, import, init,
        list, logs, plan, reject, resume, retry, run, schema, status, validate, version, watch,
        why, worker, workers,
    },
    contexts::Contexts,
    credentials::set_credentials,
    failure::Failure,
    render::{Style, safe},
    telemetry::{Part, Telemetry},
};

#[cfg(feature = "server")]
use crate::commands::{backup, demo, doctor, pki, restore, serve, token};

/// Runs the command of the command line.
pub(crate) async fn carry_out(cli: Cli) -> CommandResult {
    start_logging();
    let part = part_of(&cli.command);
    #[cfg(feature = "server")]
    let endpoint = if let Command::Serve(args) = &cli.command { args.otlp()? } else { None };
    #[cfg(not(feature = "server"))]
    let endpoint = None::<String>;
    let mut telemetry = Telemetry::begin(part, endpoint.as_deref());
    if part == Part::Command {
        telemetry.begin_command(&cli.name);
    }
    let finished = dispatch(cli, &telemetry).await;
    telemetry.end(&finished).await;
    finished
}

/// What the process is in its telemetry.
fn part_of(command: &Command) -> Part {
    #[cfg(feature = "server")]
    if matches!(command, Command::Serve(_)) {
        return Part::Server;
    }
    if matches!(command, Command::Worker(_)) { Part::Worker } else { Part::Command }
}

async fn dispatch(cli: Cli, telemetry: &Telemetry) -> CommandResult {
    let Cli { mut global, command, name: _ } = cli;
    let token = choose_context(&mut global, &command)?;
    // Here and not at the server: a slip of the keyboard is not a bug of a client, and commands
    // that need no actor should not accept it either.
    if let Some(actor) = &global.actor {
        check_actor(actor)?;
    }
    let style = Style::of_stdout(global.ascii);
    let app = App { global, style };
    #[cfg(feature = "server")]
    if let (Some(name), Some(_)) = (of_a_store(&command), &app.global.server) {
        let message = format!("`tow {name}` works on a store, not through a server");
        return Err(Failure::new(
            ErrorCode::Usage,
            message,
            "Name the store with `--store` on its machine.",
        ));
    }
    let own = if let Command::Worker(args) = &command { args.certificate() } else { None };
    set_credentials(app.global.tls_ca.as_deref(), own, token, telemetry.place())?;
    match command {
        Command::Init(args) => init::init(&app, args),
        Command::Validate(args) => validate::validate(&app, args),
        Command::Plan(args) => plan::plan(&app, args),
        Command::Graph(args) => graph::graph(&app, args).await,
        Command::Run(args) => run::run(&app, args).await,
        Command::Resume(args) => resume::resume(&app, args).await,
        Command::Status(args) => status::status(&app, args).await,
        Command::Watch(args) => watch::watch(&app, args).await,
        Command::Why(args) => why::why(&app, args).await,
        Command::Logs(args) => logs::logs(&app, args).await,
        Command::List(args) => list::list(&app, args).await,
        Command::Approve(args) => approve::approve(&app, args).await,
        Command::Reject(args) => reject::reject(&app, args).await,
        Command::Retry(args) => retry::retry(&app, args).await,
        Command::Cancel(args) => cancel::cancel(&app, args).await,
        Command::Events(args) => events::events(&app, args).await,
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::serve(&app, args, telemetry).await,
        Command::Worker(args) => worker::worker(&app, args).await,
        Command::Workers(args) => workers::workers(&app, args).await,
        #[cfg(feature = "server")]
        Command::Token(args) => token::token(&app, args),
        Command::Context(args) => context::context(&app, args),
        #[cfg(feature = "server")]
        Command::Pki(args) => pki::pki(&app, args),
        Command::Autoscale(args) => autoscale::autoscale(&app, args).await,
        Command::Import(args) => import::import(&app, args).await,
        Command::Export(args) => export::export(&app, args).await,
        Command::Schema(args) => schema::schema(&app, &args),
        #[cfg(feature = "server")]
        Command::Demo(args) => demo::demo(&app, args).await,
        #[cfg(feature = "server")]
        Command::Doctor(args) => doctor::doctor(&app, args).await,
        #[cfg(feature = "server")]
        Command::Backup(args) => backup::backup(&app, args).await,
        #[cfg(feature = "server")]
        Command::Restore(args) => restore::restore(&app, args).await,
        Command::Completions(args) => completions::completions(&app, &args, Cli::command()),
        Command::Version(args) => version::version(&app, args).await,
    }
}

/// Refuses an actor that no server takes, and says what to write instead.
fn check_actor(actor: &str) -> Result<(), Failure> {
    if actor.parse::<Actor>().is_ok() {
        return Ok(());
    }
    let shown = safe(actor);
    let message = format!("`{shown}` is not a valid actor");
    let kinds = "`human:NAME`, `agent:NAME` or `service:NAME`";
    // A name without its kind is what people write first.
    let person = format!("human:{actor}");
    let advice = if !actor.contains(':') && person.parse::<Actor>().is_ok() {
        format!("Write `--actor human:{shown}` for a person; actors are {kinds}.")
    } else {
        format!("Write {kinds} in `--actor` or `TOW_ACTOR`, with a name of 1 to 200 characters.")
    };
    Err(Failure::new(ErrorCode::Usage, message, advice))
}

/// Puts the server of a context where `--server` would stand, if one is to be used; answers its
/// token. Options take precedence over the environment, and the environment over the file.
fn choose_context(global: &mut Global, command: &Command) -> Result<Option<String>, Failure> {
    let named = global.server.is_some() || global.store.is_some();
    if !talks(command) || (named && !global.context_spelt) {
        return Ok(None);
    }
    let contexts = Contexts::read()?;
    let name = match &global.context {
        // Said to be none.
        Some(name) if name.is_empty() => None,
        Some(name) => Some(name.clone()),
        None => contexts.current().map(str::to_owned),
    };
    let Some(name) = name else { return Ok(None) };
    let context = contexts.get(&name)?;
    drop(writeln!(io::stderr(), "context {}: {}", safe(&name), safe(&context.server)));
    let token = context.token()?;
    global.store = None;
    global.server = Some(context.server);
    global.tls_ca = global.tls_ca.take().or(context.ca);
    Ok(token)
}

/// Whether a command talks to a store or a server.
fn talks(command: &Command) -> bool {
    if let Command::Graph(args) = command {
        return args.run().is_some();
    }
    let alone = matches!(
        command,
        Command::Init(_)
            | Command::Validate(_)
            | Command::Context(_)
            | Command::Schema(_)
            | Command::Completions(_)
    );
    #[cfg(feature = "server")]
    let alone = alone
        || matches!(
            command,
            Command::Serve(_) | Command::Pki(_) | Command::Demo(_) | Command::Restore(_)
        );
    !alone
}

/// The name of a command that needs the store itself.
#[cfg(feature = "server")]
fn of_a_store(command: &Command) -> Option<&'static str> {
    let named = [
        (matches!(command, Command::Doctor(_)), "doctor"),
        (matches!(command, Command::Backup(_)), "backup"),
        (matches!(command, Command::Restore(_)), "restore"),
        (matches!(command, Command::Token(_)), "token"),
    ];
    named.into_iter().find(|(is, _)| *is).map(|(_, name)| name)
}

/// Starts logging to standard error, if `TOW_LOG` is set.
fn start_logging() {
    let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("TOW_LOG") else { return };
    let notes = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match std::env::var("TOW_LOG_FORMAT").as_deref() {
        Ok("json") => notes.json().init(),
        Ok(_) | Err(_) => notes.init(),
    }
}
