//! What commands work with: the actor, the store, the form of the output.

use std::io::{self, Write as _};

use serde::Serialize;
use towpath_worker::open_files::{FewerJobs, check_jobs};

use crate::{
    args::{Global, Output},
    connect::{SERVER_SCHEME, ServerConnection, store_url},
    credentials::bearer,
    failure::Failure,
    render::Style,
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
