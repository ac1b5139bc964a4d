//! Following a run until it comes to rest, and drawing it on the way: what `run`, `resume` and
//! `watch` share.

mod gate;
mod host;
mod screen;
mod stall;
mod stream;

use std::time::Duration;

use gate::AtGate;
use host::{Host, HostNews, worker_failure};
use screen::Show;
use stall::StallWatch;
pub(crate) use stream::{connection_lost, folded};
use stream::{folded_to, heard, why_stopped};
use tokio_stream::StreamExt as _;
use towpath_engine::{code::ErrorCode, ids::RunId};
use towpath_proto::{streams::Records, v1};
use towpath_worker::{AttemptsError, WorkerError};

pub(crate) use crate::signals::Signals;

use super::{App, CommandResult};
use crate::{connect::ServerConnection, exit, failure::Failure};

/// How often a moving picture is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Records that belong together come together: a pause of this length means that there are no more.
const MORE_WITHIN: Duration = Duration::from_millis(50);
/// How long a stream may take to say why it ends, or what was recorded last.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(2);

/// What to follow, and whether to work on it.
pub(crate) struct Follow {
    pub(crate) run: RunId,
    pub(crate) short_id: String,
    /// Events up to this version are not news.
    pub(crate) known: u64,
    /// Run its jobs in this process, this many at once.
    pub(crate) slots: Option<u32>,
    /// Wait at a gate until it is opened elsewhere.
    pub(crate) wait: bool,
    /// What this worker offers.
    pub(crate) tags: Vec<String>,
}

/// Works on a run to its end. When the process that has the store open ends, this one opens it.
pub(crate) async fn work_on(
    app: &App,
    mut server: ServerConnection,
    mut what: Follow,
) -> CommandResult {
    // A server that was named as one has workers of its own.
    what.slots = what.slots.filter(|_| !server.is_remote()).map(|asked| app.jobs_at_once(asked));
    loop {
        let failure = match follow(app, &server, &what).await {
            Err(failure) => failure,
            finished => {
                server.close().await;
                return finished;
            }
        };
        let waiting = || {
            app.say("Disconnected from the server; waiting for it to come back. The run continues then.");
        };
        server = server.reconnect_after(failure, &app.url(), waiting).await?;
        if server.is_ours() {
            app.say("The process that had the store open has ended; this one continues.");
        }
        what.known = server.run(what.run.as_str()).await?.version;
    }
}

/// Follows a run until it has ended, waits for a person, or is left alone.
pub(crate) async fn follow(app: &App, server: &ServerConnection, follow: &Follow) -> CommandResult {
    // Before the first record, so that a second `tow` of the same store can connect while this one
    // works.
    server.listen();
    // A server that was named as one has workers of its own.
    let slots = follow.slots.filter(|_| !server.is_remote());
    // The worker starts before the snapshot is read: reading the state of a large run takes time in
    // which jobs can already begin.
    let mut host = Host::begin(server, follow, slots);
    // From the beginning: what is drawn is the fold of the run's records, by the engine's own rules.
    let request = v1::FollowRequest { run: follow.run.to_string(), after: 0, follow: true };
    let mut records = Records::new(server.log().follow(request).await?.into_inner());
    let run = folded_to(&mut records, follow.known).await?;
    let mut show = Show::new(app, server, run, follow);
    show.begin();
    let finished = until_rest(server, follow, &mut host, &mut show, &mut records).await;
    // The command that continues the run needs its id, which is not known where the failure was
    // made.
    let finished = finished.map_err(|failure| resumable(failure, &follow.short_id));
    // Before the last picture: the worker's last reports are part of it.
    host.end(&finished).await;
    if matches!(finished, Ok(exit::INTERRUPTED)) {
        show.catch_up(&mut records).await;
    }
    // A failure says more than whatever the picture cannot show because of it.
    let shown = show.end().await;
    let code = finished?;
    shown?;
    if code == exit::INTERRUPTED {
        let id = &follow.short_id;
        app.say(&if host.is_of_others(server) {
            format!("The run continues. `tow watch {id}` follows it.")
        } else {
            format!("Stopped. `tow resume {id}` continues the run.")
        });
    }
    Ok(code)
}

/// Shows what comes until there is nothing to wait for.
async fn until_rest(
    server: &ServerConnection,
    follow: &Follow,
    host: &mut Host,
    show: &mut Show<'_>,
    records: &mut Records,
) -> CommandResult {
    let mut signals = Signals::new()?;
    let mut ticks = tokio::time::interval(DRAW_EVERY);
    let mut stalls = StallWatch::of(&follow.run);
    loop {
        if let Some(code) = exit::of_phase(show.run.phase()) {
            return Ok(code);
        }
        // `tow run | head -1`: the output has no reader any more, and jobs must not continue
        // without one for hours. They are stopped as by Ctrl-C.
        if let Some(why) = show.newly_unread()
            && host.interrupt(show, Some(&why))
        {
            return Ok(exit::INTERRUPTED);
        }
        if show.run.waits_for_people() && !host.interrupted && (host.works() || !follow.wait) {
            // An approval may be on its way already, with `--yes` even in the same append.
            if let Ok(record) = tokio::time::timeout(MORE_WITHIN, records.next()).await {
                show.take(&heard(record)?)?;
                continue;
            }
            let at_gate = tokio::select! {
                at_gate = show.at_gate(follow.wait, &mut signals) => at_gate?,
                () = server.stopped() => return Err(why_stopped(records).await),
            };
            match at_gate {
                AtGate::Leave => return Ok(exit::AT_GATE),
                AtGate::Decided | AtGate::Wait => {}
            }
        }
        tokio::select! {
            // Records first, so that a burst of them is shown before a signal or a tick is looked
            // at.
            biased;
            record = records.next() => show.take(&heard(record)?)?,
            // The commit of a lease belongs to no request: no response and no record says that it
            // failed, and a run that cannot be recorded would be waited for forever.
            () = server.stopped() => return Err(why_stopped(records).await),
            () = signals.next() => {
                if host.interrupt(show, None) {
                    return Ok(exit::INTERRUPTED);
                }
            }
            news = host.next(server, follow) => match news {
                HostNews::OthersLeft => host.take_over(server, follow, show),
                HostNews::Ended(Ok(_)) if host.interrupted => return Ok(exit::INTERRUPTED),
                HostNews::Ended(Ok(_)) => {}
                HostNews::Ended(Err(WorkerError::Attempts(AttemptsError::InUse { .. }))) => {
                    host.leave_to_others(show);
                    if host.interrupted {
                        return Ok(exit::INTERRUPTED);
                    }
                }
                HostNews::Ended(Err(error)) => return Err(worker_failure(&error)),
            },
            stall = stalls.next(server, &show.run) => show.note_stall(stall),
            _ = ticks.tick() => show.draw(),
        }
    }
}

/// `failure`, with how this run continues if it is the store's.
fn resumable(failure: Failure, short_id: &str) -> Failure {
    if !failure.is(ErrorCode::StoreUnavailable) {
        return failure;
    }
    failure.with_advice(format!(
        "No later event is recorded. Running jobs keep running. Fix the cause that the message names (a full disk, a failing device); then `tow resume {short_id}` adopts them."
    ))
}
