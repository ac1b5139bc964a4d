//! One file for each command, and what they share: the actor, the store, the form of the output.

pub(crate) mod approve;
pub(crate) mod autoscale;
#[cfg(feature = "server")]
pub(crate) mod backup;
pub(crate) mod cancel;
pub(crate) mod completions;
pub(crate) mod context;
#[cfg(feature = "server")]
pub(crate) mod demo;
#[cfg(feature = "server")]
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod export;
pub(crate) mod follow;
pub(crate) mod graph;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod pipeline;
#[cfg(feature = "server")]
pub(crate) mod pki;
pub(crate) mod plan;
pub(crate) mod reject;
#[cfg(feature = "server")]
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod retry;
pub(crate) mod run;
pub(crate) mod schema;
#[cfg(feature = "server")]
pub(crate) mod serve;
pub(crate) mod status;
#[cfg(feature = "server")]
pub(crate) mod token;
pub(crate) mod validate;
pub(crate) mod version;
pub(crate) mod watch;
pub(crate) mod why;
pub(crate) mod worker;
pub(crate) mod workers;

use std::io::{self, Write};

use serde::Serialize;
use towpath_engine::code::ErrorCode;
use towpath_engine::ids::Actor;
use towpath_worker::open_files::{FewerJobs, check_jobs};

use crate::{
    cli::{Cli, Command, Global, Output},
    connect::{SERVER_SCHEME, ServerConnection, bearer, set_credentials, store_url},
    contexts::Contexts,
    failure::Failure,
    render::{Style, safe},
    telemetry::{Part, Telemetry},
};

/// What a command answers with when nothing went wrong: an exit code.
pub(crate) type CommandResult = Result<u8, Failure>;

/// What a command works with.
pub(crate) struct App {
    pub(crate) global: Global,
    pub(crate) style: Style,
}

impl App {
    /// The server of the store, which must exist.
    pub(crate) async fn server(&self) -> Result<ServerConnection, Failure> {
        ServerConnection::connect_existing(&self.url()).await
    }

    /// Where runs are kept: a server, or a store.
    pub(crate) fn url(&self) -> String {
        match &self.global.server {
            Some(address) => format!("{SERVER_SCHEME}:{address}"),
            None => self.store_url(),
        }
    }

    /// The store of this machine.
    pub(crate) fn store_url(&self) -> String {
        store_url(self.global.store.as_deref())
    }

    /// The actor. `None` with a token, which names it to the server.
    pub(crate) fn actor(&self) -> String {
        let told = self.global.server.is_some() && bearer().is_some();
        let named = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok();
        let known = || {
            let user = nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten();
            user.map(|user| user.name)
        };
        match &self.global.actor {
            // Checked before any command began.
            Some(actor) => actor.clone(),
            None if told => String::new(),
            None => {
                let name = named().filter(|name| !name.is_empty()).or_else(known);
                format!("human:{}", name.unwrap_or_else(|| "unknown".to_owned()))
            }
        }
    }

    pub(crate) fn output(&self) -> Output {
        self.global.output
    }

    /// Prints `value` as JSON, on one line for `jsonl`.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = match self.global.output {
            Output::Json => serde_json::to_string_pretty(value)?,
            Output::Text | Output::Jsonl => serde_json::to_string(value)?,
        };
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }

    /// Prints text for people.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Says something beside the answer.
    pub(crate) fn say(&self, text: &str) {
        drop(writeln!(io::stderr().lock(), "{text}"));
    }

    /// As many of `asked` jobs at once as this process can open files for; says so if it is fewer.
    pub(crate) fn jobs_at_once(&self, asked: u32) -> u32 {
        let Err(FewerJobs { jobs, files }) = check_jobs(asked) else { return asked };
        self.say(&format!(
            "At most {jobs} jobs run at once instead of {asked}: this process may have {files} \
             files open (`ulimit -n`)."
        ));
        jobs
    }
}

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
        Command::Completions(args) => completions::completions(&app, &args),
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

/// A duration, in milliseconds.
pub(crate) fn duration(text: &str) -> Result<u64, Failure> {
    towpath_pipeline::file::duration_ms(text).map_err(|why| {
        let advice = "Write it as `500ms`, `30s`, `5m` or `1h`.";
        Failure::new(ErrorCode::Usage, format!("`{text}` is not a valid duration: {why}"), advice)
    })
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
