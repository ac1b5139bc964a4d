//! `tow pki`.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;
use towpath_engine::code::ErrorCode;
use towpath_engine::time::Timestamp;
use towpath_server::{
    Clock as _, SystemClock,
    auth::pki::{self, CERTIFICATE_DAYS, DAY, Entry, PkiError, Subject},
};

use super::{App, CommandResult};
use crate::{args::Output, exit, failure::Failure, render::safe};

/// Issue and revoke certificates of servers and workers
///
/// One authority for each installation. Its folder holds its key: keep it on a machine of its own,
/// and give servers and workers their own certificate and key, and `ca.pem`.
#[derive(Debug, clap::Args)]
pub(crate) struct PkiArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make an authority
    Init {
        /// Its folder
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The name of the installation
        #[arg(long, default_value = "towpath", value_name = "NAME")]
        install: String,
    },
    /// Issue a certificate and its key
    Issue {
        /// The authority's folder
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// For a server: the names and addresses that clients use for it
        #[arg(
            long,
            value_delimiter = ',',
            value_name = "HOST",
            required_unless_present = "worker",
            conflicts_with = "worker"
        )]
        server: Vec<String>,
        /// For a worker: its name
        #[arg(long, value_name = "NAME")]
        worker: Option<String>,
        /// How many days it is valid
        #[arg(long, default_value_t = CERTIFICATE_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650), value_name = "N")]
        days: u32,
    },
    /// List the issued certificates and their state
    List {
        /// The authority's folder
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Revoke certificates
    ///
    /// Signs the list of all revoked certificates. Copy it over the server's `--client-crl` file:
    /// connections of these workers end within a second.
    Revoke {
        /// The authority's folder
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The name that they were issued for, or one serial number
        #[arg(value_name = "NAME|SERIAL")]
        which: String,
    },
}

/// A certificate, as machines read it. Names are stable.
#[derive(Serialize)]
struct CertificateJson {
    serial: String,
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
    state: &'static str,
}

impl CertificateJson {
    fn of(entry: Entry, now: Timestamp) -> Self {
        let state = match (entry.revoked_at, entry.expires_at) {
            // Before expiry: a certificate that was revoked stays so in reports for ever.
            (Some(_), _) => "revoked",
            (None, Some(end)) if end <= now => "expired",
            (None, _) => "good",
        };
        Self {
            serial: entry.serial,
            kind: entry.kind,
            name: entry.name,
            expires_at: entry.expires_at.map(|at| at.to_string()),
            revoked_at: entry.revoked_at.map(|at| at.to_string()),
            state,
        }
    }
}

/// The list of what was taken back, as machines read it. Names are stable.
#[derive(Serialize)]
struct RevokedJson {
    list: String,
    revoked: usize,
}

/// What was written, as machines read it. Names are stable.
#[derive(Serialize)]
struct WrittenJson {
    certificate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// Makes an authority or a certificate.
pub(crate) fn pki(app: &App, args: PkiArgs) -> CommandResult {
    let written = match args.what {
        What::Init { dir, install } => {
            let certificate = pki::init(&dir, &install).map_err(failure)?;
            WrittenJson { certificate: certificate.display().to_string(), key: None }
        }
        What::Issue { dir, server, worker, days } => {
            let subject = worker.map_or(Subject::Server(server), Subject::Worker);
            let issued = pki::issue(&dir, &subject, DAY * days).map_err(failure)?;
            let key = Some(issued.key.display().to_string());
            WrittenJson { certificate: issued.certificate.display().to_string(), key }
        }
        // No server is asked: the authority may be on a machine without a network.
        What::List { dir } => return list(app, pki::list(&dir).map_err(failure)?),
        What::Revoke { dir, which } => {
            let (path, count) = pki::revoke(&dir, &which, SystemClock.now()).map_err(failure)?;
            // On standard error: standard output has the path alone, for a script that copies the
            // file.
            let many = if count == 1 {
                "1 certificate".to_owned()
            } else {
                format!("{count} certificates")
            };
            app.say(&format!(
                "The list holds {many}. Put it where the server's `--client-crl` is."
            ));
            let list = path.display().to_string();
            match app.output() {
                Output::Text => app.print(&format!("{list}\n"))?,
                Output::Json | Output::Jsonl => app.json(&RevokedJson { list, revoked: count })?,
            }
            return Ok(exit::DONE);
        }
    };
    match app.output() {
        Output::Text => {
            app.print(&format!("{}\n", written.certificate))?;
            if let Some(key) = &written.key {
                app.print(&format!("{key}\n"))?;
            }
        }
        Output::Json | Output::Jsonl => app.json(&written)?,
    }
    Ok(exit::DONE)
}

fn list(app: &App, entries: Vec<Entry>) -> CommandResult {
    let now = SystemClock.now();
    let shown: Vec<_> = entries.into_iter().map(|entry| CertificateJson::of(entry, now)).collect();
    match app.output() {
        Output::Text if shown.is_empty() => app.say("The authority has issued nothing yet."),
        Output::Text => {
            for one in &shown {
                let whose = app.style.pad(&safe(&format!("{} {}", one.kind, one.name)), 28);
                let end = one.expires_at.as_deref().unwrap_or("unknown");
                app.print(&format!("{:<32}  {whose}  {:<7}  ends {end}\n", one.serial, one.state))?;
            }
        }
        Output::Json => app.json(&shown)?,
        Output::Jsonl => {
            for one in shown {
                app.json(&one)?;
            }
        }
    }
    Ok(exit::DONE)
}

fn failure(error: PkiError) -> Failure {
    let message = error.to_string();
    match error {
        PkiError::NameMalformed { .. } => {
            let advice = "Use 1 to 63 letters, digits and `._-`, a letter or digit first.";
            Failure::new(ErrorCode::Usage, message, advice)
        }
        PkiError::Exists { .. } => {
            let advice = "Nothing is overwritten; move it away, or choose another folder.";
            Failure::new(ErrorCode::FileExists, message, advice)
        }
        PkiError::CertificateUnknown { .. } => {
            Failure::new(ErrorCode::CertificateUnknown, message, "See `tow pki list`.")
        }
        PkiError::Unusable { path, source } => Failure::file(&path, &source),
        PkiError::Unmade(_) => {
            let advice = "Check the names, and the files that `tow pki init` made.";
            Failure::new(ErrorCode::TlsUnusable, message, advice)
        }
    }
}
