//! Messages on their way to a worker: made when its connection takes them, and not before.

use towpath_engine::{
    ids::AttemptId,
    scheduler::{Input, Message, SessionId},
};
use towpath_proto::v1;

use super::WorkerSessions;
use crate::{
    bundles::on_disk, command_error::CommandError, outbox::Outbox, shared_scheduler::Delivery, wire,
};

impl WorkerSessions {
    /// Sends what waits for a session, as its connection takes it.
    pub(super) async fn deliver(self, session: SessionId, delivery: Delivery, outbox: Outbox) {
        loop {
            while let Some(message) = self.scheduler.next_message(session) {
                delivery.taken.notify_one();
                // A worker that is away opens another session, for which everything is read again:
                // what is read for this one would only make that slower.
                let message = tokio::select! {
                    message = self.message_of(session, message, &outbox) => message,
                    () = delivery.closed.cancelled() => return,
                    () = outbox.closed() => return,
                };
                let message = match message {
                    Ok(message) => message,
                    // What was to be sent is lost with the session: it is sent again in the next.
                    Err(error) => return self.scheduler.disconnect(session, Some(error)),
                };
                if let Some(message) = message
                    && !outbox.send(message).await
                {
                    return;
                }
            }
            tokio::select! {
                () = delivery.wake.notified() => {}
                () = delivery.closed.cancelled() => return,
                () = outbox.closed() => return,
            }
        }
    }

    /// A message as the worker reads it. `None`: the attempt that it is about has ended meanwhile.
    async fn message_of(
        &self,
        session: SessionId,
        message: Message,
        outbox: &Outbox,
    ) -> Result<Option<v1::SessionResponse>, CommandError> {
        Ok(Some(match message {
            Message::Welcome { held } => {
                let held: Vec<AttemptId> = held.into_iter().collect();
                let lengths = self.lengths(session, &held, outbox).await?;
                wire::welcome(lengths.into_iter(), self.scheduler.lease_ms())
            }
            Message::Assign { attempt, fence } => {
                // The newest state: its lease is durable, and whatever was decided since then can
                // only take the assignment back.
                let loaded = self.runs.lock_latest(&attempt.run).await?;
                return Ok(wire::assignment(&attempt, fence, &loaded.state));
            }
            Message::Cancel(attempt) => wire::cancel(&attempt),
            Message::Recorded(attempt) => wire::recorded(&attempt),
        }))
    }

    /// How much of the output of each attempt is there, for a worker that continues from there. The
    /// worker waits for the answer and says nothing meanwhile: the reading counts as a heartbeat,
    /// or a worker with much output would be lost each time it comes back.
    async fn lengths(
        &self,
        session: SessionId,
        held: &[AttemptId],
        outbox: &Outbox,
    ) -> Result<Vec<(AttemptId, u64)>, CommandError> {
        let mut lengths = Vec::new();
        for key in held {
            let (outputs, attempt) = (self.outputs.clone(), key.clone());
            let length = on_disk(move || Ok(outputs.recover_or_set_aside(&attempt))).await?;
            lengths.push((key.clone(), length));
            self.scheduler.on(Input::Heartbeat { session });
            // The worker gives up a server from which nothing comes.
            outbox.try_send(wire::heartbeat());
        }
        Ok(lengths)
    }
}
