//! `tow why`.

use serde::Serialize;
use towpath_proto::v1;

use super::{App, CommandResult};
use crate::clock::now;
use crate::{
    args::{Output, RunArg},
    at::{AtArg, as_of_line},
    exit,
    json::{self, Json},
    render::{
        explanation::{Explained, explained},
        safe,
    },
};

/// Explain why a job is in its state
///
/// One answer: it waits for needs, a stage, a gate, a lock, a back-off, a worker, or it has ended
/// and why.
#[derive(Debug, clap::Args)]
pub(crate) struct WhyArgs {
    /// The job
    job: String,
    #[command(flatten)]
    run: RunArg,
    #[command(flatten)]
    at: AtArg,
}

/// The answer, and what it means in words.
#[derive(Serialize)]
struct WhyJson {
    #[serde(flatten)]
    answer: Json,
    sentence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
}

/// Asks the server and puts its answer into words.
pub(crate) async fn why(app: &App, args: WhyArgs) -> CommandResult {
    let server = app.server().await?;
    let request = v1::ExplainJobRequest { run: args.run.run, job: args.job, at: args.at.message() };
    let answer = server.runs().explain_job(request).await?.into_inner();
    if let Some(as_of) = &answer.as_of {
        app.say(&as_of_line(as_of));
    }
    let Explained { sentence, command } = explained(&answer, now());
    if app.output() == Output::Text {
        app.print(&format!("{}\n", safe(&sentence)))?;
        if let Some(command) = &command {
            app.print(&format!("  {}\n", safe(command)))?;
        }
    } else {
        app.json(&WhyJson { answer: json::of(&answer), sentence, command })?;
    }
    server.close().await;
    Ok(exit::DONE)
}
