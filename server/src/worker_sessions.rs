//! Sessions of workers: what the server does with what a worker says, from its hello to the end of
//! the connection. Who is given which job is decided by the engine's `scheduler`.
//!
//! ```text
//!  connection ─▶ receive ─┬▶ heartbeat, drain, goodbye ─▶ scheduler
//!                         ├▶ output, artifact ─▶ spool
//!                         └▶ report ─▶ keep what arrived ─▶ record ─▶ forget
//!  connection ◀─ deliver ◀─ messages that wait for the session
//! ```

mod delivery;
mod hello;
mod parts;
mod reports;

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    ids::AttemptId,
    scheduler::{Input, SessionId},
};

use crate::{
    command_error::CommandError,
    outbox::Outbox,
    outputs::Outputs,
    runs::Runs,
    scheduler_driver::SchedulerDriver,
    shared_scheduler::{Delivery, SharedScheduler},
    status,
    wire::{self, Received, WorkerMessage},
};
use parts::{PartError, artifact_path, fits, note_part, part};
use reports::Reports;

/// Longest time before a part that the disk had no room for is written again.
const PART_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Serves the sessions of workers.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSessions {
    runs: Arc<Runs>,
    scheduler: Arc<SharedScheduler>,
    driver: Arc<SchedulerDriver>,
    outputs: Arc<Outputs>,
    /// Cancelled when the server closes.
    stop: CancellationToken,
}

impl WorkerSessions {
    pub(crate) fn new(
        runs: Arc<Runs>,
        scheduler: Arc<SharedScheduler>,
        driver: Arc<SchedulerDriver>,
        outputs: Arc<Outputs>,
        stop: CancellationToken,
    ) -> Self {
        Self { runs, scheduler, driver, outputs, stop }
    }

    /// Serves one connection until its session ends. `check_name` refuses a worker that goes by
    /// another name than its own.
    pub(crate) async fn serve(
        self,
        mut incoming: impl Stream<Item = Received> + Send + Unpin,
        check_name: impl Fn(&str) -> Result<(), CommandError> + Send,
        outbox: Outbox,
    ) {
        let hello = match hello::first_of(&mut incoming, hello::WITHIN).await {
            Ok(hello) => hello,
            Err(error) => return outbox.end(Some(status::of(error))),
        };
        // Before the scheduler learns of it: a session under a name ends the one that has it.
        if let Err(error) = check_name(&hello.worker) {
            return outbox.end(Some(status::of(error)));
        }
        let outbox = outbox.named(&hello.worker);
        match self.driver.open(hello, &outbox).await {
            Ok((session, delivery)) => {
                // Two tasks: a worker that reads slowly is still heard, or its heartbeats would not
                // be seen while the server waits for it to read.
                tokio::spawn(self.clone().deliver(session, delivery.clone(), outbox.clone()));
                let served = self.receive(session, &delivery, incoming, &outbox).await;
                self.scheduler.disconnect(session, served.err());
            }
            Err(error) => outbox.end(Some(status::of(error))),
        }
    }

    /// Takes in what a worker says until its session ends, by itself or for an error.
    async fn receive(
        &self,
        session: SessionId,
        delivery: &Delivery,
        mut incoming: impl Stream<Item = Received> + Send + Unpin,
        outbox: &Outbox,
    ) -> Result<(), CommandError> {
        let mut reports = Reports::default();
        loop {
            let read = async {
                // A worker that does not read its answers is not read either: each message of it may
                // mean another answer, and those would be kept for it without bound.
                while self.scheduler.inspect(|all| all.is_backed_up(session)) {
                    delivery.taken.notified().await;
                }
                incoming.next().await
            };
            let message = tokio::select! {
                () = self.ended(delivery, outbox) => return Ok(()),
                message = read => message,
            };
            let message = match message {
                Some(Ok(message)) => message,
                // A worker that is disconnected is told nothing.
                Some(Err(error)) => return error.map_or(Ok(()), Err),
                None => return Ok(()),
            };
            // Whatever it says shows that it is there, also in the middle of a long output.
            self.scheduler.on(Input::Heartbeat { session });
            if matches!(message, WorkerMessage::Heartbeat) {
                // A worker cannot tell a server that has nothing to say from one that hangs.
                outbox.try_send(wire::heartbeat());
            }
            if matches!(message, WorkerMessage::Goodbye) {
                self.scheduler.on(Input::Goodbye { session });
                // Until what was on its way to the worker is recorded as lost.
                delivery.closed.cancelled().await;
                return Ok(());
            }
            tokio::select! {
                () = self.ended(delivery, outbox) => return Ok(()),
                taken = self.take(session, message, &mut reports) => taken?,
            }
        }
    }

    /// Waits until the session, its connection or the server ends.
    async fn ended(&self, delivery: &Delivery, outbox: &Outbox) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = delivery.closed.cancelled() => {}
            () = outbox.closed() => {}
        }
    }

    /// Acts on one message. An error ends the session, and with it every other job of the worker:
    /// only what is wrong with the session itself, or with the store, is one. What is wrong with an
    /// attempt fails its job; else one bad file name would cost all the worker's jobs, again at
    /// every new session.
    async fn take(
        &self,
        session: SessionId,
        message: WorkerMessage,
        reports: &mut Reports,
    ) -> Result<(), CommandError> {
        match message {
            WorkerMessage::Output { key, offset, content } => {
                if !self.holds(session, &key) {
                    return Ok(());
                }
                let write = || {
                    fits(&content).and_then(|()| part(self.outputs.write(&key, offset, &content)))
                };
                let taken = self.write_patiently(session, write).await;
                note_part(key, taken, &mut reports.refused)
            }
            WorkerMessage::Artifact { key, path, offset, content } => {
                if !self.holds(session, &key) {
                    return Ok(());
                }
                let write = || {
                    fits(&content).and_then(|()| artifact_path(&path)).and_then(|()| {
                        part(self.outputs.write_artifact(&key, &path, offset, &content))
                    })
                };
                let taken = self.write_patiently(session, write).await;
                note_part(key, taken, &mut reports.refused)
            }
            WorkerMessage::Report(report) => self.take_report(session, report, reports).await,
            WorkerMessage::Drain => {
                self.scheduler.on(Input::DrainRequested { session });
                Ok(())
            }
            WorkerMessage::Heartbeat | WorkerMessage::Goodbye | WorkerMessage::Unknown => Ok(()),
            WorkerMessage::Hello(_) => {
                Err(CommandError::MessageInvalid { what: "a second hello".to_owned() })
            }
        }
    }

    /// Writes a part, again and again while the disk has no room for it and the session lives.
    /// Nothing else is read from the session meanwhile, so that its worker does not send more; both
    /// sides count that as a sign of life, or the session would end and all be sent anew.
    async fn write_patiently(
        &self,
        session: SessionId,
        write: impl Fn() -> Result<(), PartError>,
    ) -> Result<(), PartError> {
        let pause = self.scheduler.inspect(|all| all.lease() / 4).min(PART_PAUSE_MAX);
        loop {
            let written = write();
            let is_full = written.as_ref().is_err_and(PartError::is_full);
            if !is_full || !self.scheduler.inspect(|all| all.is_open(session)) {
                return written;
            }
            tokio::time::sleep(pause).await;
            self.scheduler.keep_alive(session, wire::heartbeat());
        }
    }

    /// Whether this session was given the attempt. Parts of another one are ignored: it may have
    /// expired while they were on their way.
    fn holds(&self, session: SessionId, key: &AttemptId) -> bool {
        self.scheduler.inspect(|all| all.holds(session, key))
    }
}
