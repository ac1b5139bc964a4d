//! `tow approve`.

use towpath_engine::code::ErrorCode;
use towpath_proto::v1;

use super::{App, CommandResult};
use crate::{
    args::RunArg,
    authors,
    connect::ServerConnection,
    exit,
    failure::Failure,
    render::{
        safe,
        words::{self, GateFacts},
    },
};

/// Approve the gate of a job
///
/// The approval is recorded with your name and covers exactly what waits now: the plan, the job and
/// the results before it. The last approval that the gate needs opens it. An approval cannot be
/// revoked; `tow reject` rejects a gate that is not open yet, `tow cancel` ends the run.
#[derive(Debug, clap::Args)]
pub(crate) struct ApproveArgs {
    /// The job behind the gate [default: the only gate that waits]
    job: Option<String>,
    #[command(flatten)]
    run: RunArg,
    /// A comment for the log
    #[arg(short = 'm', long, default_value = "", hide_default_value = true)]
    comment: String,
    /// Approve only this digest: the `approval_digest` of `tow status --output json`
    #[arg(long, alias = "binds", value_name = "SHA256")]
    digest: Option<String>,
}

/// Approves, and says what the gate wants and what happens next.
pub(crate) async fn approve(app: &App, args: ApproveArgs) -> CommandResult {
    let server = app.server().await?;
    let gate = waiting_gate(&server, &args.run.run, args.job.as_deref()).await?;
    let job = safe(&gate.job);
    if let Some(policy) = &gate.policy {
        app.say(&format!("The gate of `{job}` wants {}.", safe(&words::policy(policy))));
    }
    let request = v1::ApproveGateRequest {
        emails: emails(&gate),
        run: gate.run.clone(),
        job: gate.job.clone(),
        approval_digest: args.digest.unwrap_or(gate.approval_digest),
        comment: args.comment,
        actor: app.actor(),
    };
    let waiting = server.gates().approve_gate(request).await?.into_inner().gate;
    if let Some(gate) = &waiting {
        let waits_for = words::gate_waits_for(&GateFacts::from(gate));
        app.say(&format!("Approved `{job}`: {}.", safe(&waits_for)));
    } else {
        app.say(&format!("Opened the gate of `{job}`."));
    }
    if waiting.is_none() && server.is_ours() {
        app.say(&format!(
            "No process works on the run; `tow resume {}` continues it.",
            short(&gate.run)
        ));
    }
    server.close().await;
    Ok(exit::DONE)
}

/// Who decides, by address, where the gate may want to know.
pub(crate) fn emails(gate: &v1::Gate) -> Vec<String> {
    if gate.policy.is_some() { authors::own_emails() } else { Vec::new() }
}

/// The gate that is meant: of the job named, or the only one.
pub(crate) async fn waiting_gate(
    server: &ServerConnection,
    run: &str,
    job: Option<&str>,
) -> Result<v1::Gate, Failure> {
    let request = v1::ListGatesRequest { run: run.to_owned(), ..Default::default() };
    let mut gates = server.gates().list_gates(request).await?.into_inner().gates;
    let Some(job) = job else {
        return match gates.len() {
            1 => Ok(gates.remove(0)),
            0 => Err(Failure::new(
                ErrorCode::GateNotWaiting,
                "no gate of the run waits for a decision",
                "See `tow status` for the state of the run.",
            )),
            _ => {
                let names: Vec<String> =
                    gates.iter().map(|gate| format!("`{}`", safe(&gate.job))).collect();
                let message = format!("these gates wait: {}", names.join(", "));
                Err(Failure::new(ErrorCode::Usage, message, "Name one of them."))
            }
        };
    };
    if let Some(gate) = gates.into_iter().find(|gate| gate.job == job) {
        return Ok(gate);
    }
    // Nothing waits under that name: let the server say why, with its own code.
    let run = server.run(run).await?;
    let (job, approval_digest) = (job.to_owned(), "0".repeat(64));
    Ok(v1::Gate { run: run.id, job, approval_digest, ..v1::Gate::default() })
}

/// The beginning of an id, long enough for a person to paste.
pub(crate) fn short(run: &str) -> &str {
    run.get(..6).unwrap_or(run)
}
