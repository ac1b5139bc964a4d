//! `tow pki`.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;
use towpath_server::auth::pki::{self, CERTIFICATE_DAYS, PkiError, Subject};

use super::{Desk, Finished};
use crate::{cli::Output, exit, failure::Failure};

/// Make the certificates of servers and workers
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
        /// What the installation is called
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
        /// How many days it is good
        #[arg(long, default_value_t = CERTIFICATE_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650), value_name = "N")]
        days: u32,
    },
}

/// What was written, as machines read it. Names are stable.
#[derive(Serialize)]
struct WrittenJson {
    certificate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// Makes an authority or a certificate.
pub(crate) fn pki(desk: &Desk, args: PkiArgs) -> Finished {
    let written = match args.what {
        What::Init { dir, install } => {
            let certificate = pki::init(&dir, &install).map_err(failure)?;
            WrittenJson { certificate: certificate.display().to_string(), key: None }
        }
        What::Issue { dir, server, worker, days } => {
            let subject = worker.map_or(Subject::Server(server), Subject::Worker);
            let issued = pki::issue(&dir, &subject, days).map_err(failure)?;
            let key = Some(issued.key.display().to_string());
            WrittenJson { certificate: issued.certificate.display().to_string(), key }
        }
    };
    match desk.output() {
        Output::Text => {
            desk.print(&format!("{}\n", written.certificate))?;
            if let Some(key) = &written.key {
                desk.print(&format!("{key}\n"))?;
            }
        }
        Output::Json | Output::Jsonl => desk.json(&written)?,
    }
    Ok(exit::DONE)
}

fn failure(error: PkiError) -> Failure {
    let message = error.to_string();
    match error {
        PkiError::NameMalformed { .. } => {
            let advice = "Use 1 to 63 letters, digits and `._-`, a letter or digit first.";
            Failure::new("USAGE", message, advice)
        }
        PkiError::Exists { .. } => {
            let advice = "Nothing is overwritten; move it away, or choose another folder.";
            Failure::new("FILE_EXISTS", message, advice)
        }
        PkiError::Unusable { path, source } => Failure::file(&path, &source),
        PkiError::Unmade(_) => {
            let advice = "Check the names, and the files that `tow pki init` made.";
            Failure::new("TLS_UNUSABLE", message, advice)
        }
    }
}
