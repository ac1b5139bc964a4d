//! `tow context`.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use super::{App, CommandResult};
use crate::{
    args::Output,
    contexts::{Context, Contexts},
    exit,
    failure::Failure,
    render::safe,
};
use towpath_engine::code::ErrorCode;

/// Manage named servers
///
/// Contexts are stored in `~/.config/towpath/config.toml`, or in the file that `TOW_CONTEXTS`
/// names. Options take precedence over the environment, and the environment over a context. Without
/// any of them the nearest store is used.
#[derive(Debug, clap::Args)]
pub(crate) struct ContextArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show every context
    List,
    /// Show one context
    Show {
        /// The context [default: the current one]
        name: Option<String>,
    },
    /// Use a context whenever no server or store is named
    Use {
        /// Which
        #[arg(required_unless_present = "none")]
        name: Option<String>,
        /// Use none
        #[arg(long, conflicts_with = "name")]
        none: bool,
    },
    /// Add a context for the server of `--server`, with the authority of `--tls-ca`
    Add {
        /// Its name
        name: String,
        /// The file that holds the token, with mode 0600
        #[arg(long, value_name = "FILE", conflicts_with = "token_command")]
        token_file: Option<PathBuf>,
        /// A command that prints the token
        #[arg(long, value_name = "CMD")]
        token_command: Option<String>,
    },
    /// Forget a context
    Remove {
        /// Which
        name: String,
    },
}

/// A context, as machines read it. Names are stable.
#[derive(Serialize)]
struct ContextJson {
    name: String,
    used: bool,
    server: String,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    token_command: Option<String>,
}

impl ContextJson {
    fn of(contexts: &Contexts, name: &str) -> Result<Self, Failure> {
        let Context { server, ca, token_file, token_command } = contexts.get(name)?;
        let used = contexts.current() == Some(name);
        Ok(Self { name: name.to_owned(), used, server, ca, token_file, token_command })
    }
}

/// Shows contexts or changes them.
pub(crate) fn context(app: &App, args: ContextArgs) -> CommandResult {
    let mut contexts = Contexts::read()?;
    match args.what {
        What::List => list(app, &contexts)?,
        What::Show { name } => {
            let Some(name) = name.as_deref().or(contexts.current()) else {
                let advice = "Name one, or choose one with `tow context use`.";
                return Err(Failure::new(ErrorCode::ContextUnknown, "no context is used", advice));
            };
            let shown = ContextJson::of(&contexts, name)?;
            match app.output() {
                Output::Text => show(app, &shown)?,
                Output::Json | Output::Jsonl => app.json(&shown)?,
            }
        }
        What::Use { name, none: _ } => {
            contexts.use_one(name.as_deref())?;
            match name {
                Some(name) => app.say(&format!("Using {}.", safe(&name))),
                None => app.say("Using no context."),
            }
        }
        What::Add { name, token_file, token_command } => {
            let Some(server) = app.global.server.clone() else {
                let advice = "Name it with `--server HOST:PORT`.";
                return Err(Failure::new(ErrorCode::Usage, "a context needs a server", advice));
            };
            // A `~` that no shell has replaced stays as it is, because it was quoted or stands
            // after a `=`: the file then means the home folder of its reader.
            let whole = |path: PathBuf| match path.starts_with("~") {
                true => path,
                false => std::path::absolute(&path).unwrap_or(path),
            };
            let ca = app.global.tls_ca.clone().map(whole);
            let token_file = token_file.map(whole);
            contexts.add(&name, &Context { server, ca, token_file, token_command })?;
            app.say(&format!("`tow --context {0}` or `tow context use {0}`.", safe(&name)));
        }
        What::Remove { name } => {
            contexts.remove(&name)?;
            app.say(&format!("{} is removed.", safe(&name)));
        }
    }
    Ok(exit::DONE)
}

fn show(app: &App, shown: &ContextJson) -> Result<(), Failure> {
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let rows = [
        ("name", Some(shown.name.clone())),
        ("server", Some(shown.server.clone())),
        ("ca", path(&shown.ca)),
        ("token file", path(&shown.token_file)),
        ("token command", shown.token_command.clone()),
    ];
    for (key, said) in rows {
        if let Some(said) = said {
            app.print(&format!("{key:<14} {}\n", safe(&said)))?;
        }
    }
    Ok(())
}

fn list(app: &App, contexts: &Contexts) -> Result<(), Failure> {
    let names = contexts.all().map(|(name, _)| ContextJson::of(contexts, name));
    let shown = names.collect::<Result<Vec<_>, _>>()?;
    match app.output() {
        Output::Text if shown.is_empty() => {
            app.say("There are no contexts; `tow context add` makes one.");
        }
        Output::Text => {
            for one in &shown {
                let mark = if one.used { '*' } else { ' ' };
                let name = app.style.pad(&safe(&one.name), 16);
                app.print(&format!("{mark} {name} {}\n", safe(&one.server)))?;
            }
        }
        Output::Json => app.json(&shown)?,
        Output::Jsonl => {
            for one in shown {
                app.json(&one)?;
            }
        }
    }
    Ok(())
}
