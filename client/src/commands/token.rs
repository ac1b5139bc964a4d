//! `tow token`.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use towpath_engine::code::ErrorCode;
use towpath_server::{
    Clock as _, SystemClock,
    auth::{
        roles::Role,
        tokens::{self, NewToken, Token, TokenKind, TokensError},
    },
};

use super::{App, CommandResult, duration};
use crate::{args::Output, connect::store_folder, exit, failure::Failure, render::safe};

/// Issue, list and revoke access tokens
///
/// Works on the store itself, whether or not a server has it open; a server knows at once. A server
/// whose store has tokens requires one at its port. A client sends the token in `TOW_TOKEN`.
#[derive(Debug, clap::Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Issue a token and show its secret, once
    Issue {
        /// The actor's name; unique in the store
        #[arg(long, value_name = "NAME")]
        name: String,
        /// What kind of actor it is
        #[arg(long, value_enum, default_value = "human", value_name = "KIND")]
        kind: Kind,
        /// What it may do: viewer, operator, approver, worker, auditor, admin
        #[arg(long = "role", required = true, value_delimiter = ',', value_name = "ROLE")]
        roles: Vec<Role>,
        /// How long it is valid, such as `30d` [default: until it is revoked]
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
        /// An address under which the person commits; needed at gates that exclude authors
        #[arg(long = "email", value_name = "EMAIL")]
        emails: Vec<String>,
    },
    /// List the tokens; secrets are not kept
    List,
    /// Revoke a token, effective at once
    Revoke {
        /// The actor's name
        name: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A person
    Human,
    /// An agent: a program that decides by itself
    Agent,
    /// A service: a program with a fixed task
    Service,
}

impl From<Kind> for TokenKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Human => Self::Human,
            Kind::Agent => Self::Agent,
            Kind::Service => Self::Service,
        }
    }
}

/// A token, as machines read it. Names are stable.
#[derive(Serialize)]
struct TokenJson {
    actor: String,
    roles: Vec<Role>,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    emails: Vec<String>,
}

impl From<Token> for TokenJson {
    fn from(token: Token) -> Self {
        Self {
            actor: token.actor().to_string(),
            created_at: token.created_at.to_string(),
            expires_at: token.expires_at.map(|end| end.to_string()),
            roles: token.roles,
            emails: token.emails,
        }
    }
}

/// Issues, lists or revokes.
pub(crate) fn token(app: &App, args: TokenArgs) -> CommandResult {
    let folder = folder(app)?;
    match args.what {
        What::Issue { name, kind, roles, expires, emails } => {
            let now = SystemClock.now();
            let expires = expires.as_deref().map(duration).transpose()?;
            let expires_at = expires.map(|ms| now.plus_ms(ms));
            let kind = kind.into();
            let new = NewToken { name: name.clone(), kind, roles, expires_at, emails };
            let secret = tokens::issue(&folder, new, now).map_err(failure)?;
            // On standard error: standard output has the secret alone, for a pipe into a secret
            // store.
            app.say(&format!("The token of {}; it cannot be shown again.", safe(&name)));
            app.print(&format!("{}\n", secret.reveal()))?;
        }
        What::List => list(app, tokens::list(&folder).map_err(failure)?)?,
        What::Revoke { name } => {
            tokens::revoke(&folder, &name).map_err(failure)?;
            app.say(&format!("The token of {} is revoked.", safe(&name)));
        }
    }
    Ok(exit::DONE)
}

/// The folder of the store, which must exist.
fn folder(app: &App) -> Result<PathBuf, Failure> {
    let url = app.store_url();
    let advice = "Begin with `tow serve` or `tow run`, or name a store with `--store`.";
    match store_folder(&url) {
        // Tokens live beside the store. In a directory without a store they would never be read.
        Some(folder) if folder.join("format").exists() => Ok(folder),
        Some(folder) => {
            let message = format!("there is no store at `{}`", folder.display());
            Err(Failure::new(ErrorCode::StoreMissing, message, advice))
        }
        // A store in memory has no directory, and no other process could use its tokens.
        None => Err(Failure::new(ErrorCode::StoreUrlInvalid, "this store keeps no tokens", advice)),
    }
}

fn list(app: &App, tokens: Vec<Token>) -> Result<(), Failure> {
    let shown: Vec<TokenJson> = tokens.into_iter().map(TokenJson::from).collect();
    match app.output() {
        Output::Text if shown.is_empty() => app.say("The store has no tokens."),
        Output::Text => {
            for token in &shown {
                let roles: Vec<_> = token.roles.iter().map(|role| role.word()).collect();
                let end = token.expires_at.as_deref().unwrap_or("never");
                let actor = app.style.pad(&safe(&token.actor), 24);
                let roles = roles.join(",");
                let mut line =
                    format!("{actor} {roles:<24}  since {}  ends {end}", token.created_at);
                if !token.emails.is_empty() {
                    line.push_str(&format!("  {}", safe(&token.emails.join(","))));
                }
                app.print(&(line + "\n"))?;
            }
        }
        Output::Json => app.json(&shown)?,
        Output::Jsonl => {
            for token in shown {
                app.json(&token)?;
            }
        }
    }
    Ok(())
}

fn failure(error: TokensError) -> Failure {
    let message = error.to_string();
    match error {
        TokensError::Exists { .. } => {
            let advice = "Revoke it first with `tow token revoke`, or choose another name.";
            Failure::new(ErrorCode::TokenExists, message, advice)
        }
        TokensError::Unknown { .. } => {
            Failure::new(ErrorCode::TokenUnknown, message, "See `tow token list`.")
        }
        TokensError::NameMalformed { .. } => {
            let advice = "Use 1 to 100 letters, digits and `._-@+`.";
            Failure::new(ErrorCode::Usage, message, advice)
        }
        TokensError::EmailMalformed { .. } => {
            let advice = "Give at most 16 addresses like `ana@example.org`, in ASCII.";
            Failure::new(ErrorCode::Usage, message, advice)
        }
        TokensError::Invalid { .. } => {
            let advice =
                "The server refuses every token until the file is corrected or written again.";
            Failure::new(ErrorCode::TokensInvalid, message, advice)
        }
        TokensError::Unusable { path, source } => Failure::file(&path, &source),
    }
}
