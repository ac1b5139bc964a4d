//! What happens when a report arrives, and when a lease is durable.

use super::{Effect, Leased, LossReason, Message, Scheduler, SessionId};
use crate::ids::AttemptId;

impl Scheduler {
    /// The report of an attempt is about to be recorded: its slot is free, and is used in the same
    /// append unless it is another run's turn.
    pub(super) fn report(&mut self, id: SessionId, attempt: &AttemptId) {
        // Nothing is recorded for an attempt that the session does not hold: it may be another's.
        if !self.holds(id, attempt) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.held.remove(attempt);
        let worker = session.hello.worker.clone();
        let lease = self.takes_turn(id, &attempt.run).then(|| self.reserve(id)).flatten();
        if lease.is_some() {
            self.take_turn(id, &attempt.run);
        }
        self.out.push(Effect::Record { worker, lease });
        self.index_session(id);
        self.match_session(id);
    }

    /// The report is durable, and so is what was leased with it.
    pub(super) fn recorded(
        &mut self,
        id: SessionId,
        attempt: AttemptId,
        with_lease: bool,
        leased: Vec<Leased>,
    ) {
        if with_lease {
            self.unreserve(id);
        }
        self.give(id, leased);
        self.queue(id, Message::Recorded(attempt));
        // The kept slot is free if the run had nothing for it: others may have.
        self.match_session(id);
    }

    /// The report was not recorded.
    pub(super) fn record_failed(&mut self, id: SessionId, with_lease: bool) {
        if with_lease {
            self.unreserve(id);
        }
        self.match_session(id);
    }

    /// Sends assignments, which are durable, to the session that they are for. An assignment
    /// without its session is lost at once: it was not sent, so no worker runs it.
    pub(super) fn give(&mut self, id: SessionId, leased: Vec<Leased>) {
        for Leased { attempt, fence } in leased {
            let there = self.sessions.get_mut(&id).filter(|session| session.is_ready());
            let Some(session) = there else {
                self.lose(&attempt, LossReason::Unsent);
                continue;
            };
            session.hold(attempt.clone());
            if let Some(lease) = self.leases.get_mut(&attempt) {
                lease.session = Some(id);
            }
            self.queue(id, Message::Assign { attempt: attempt.clone(), fence });
            if self.runs.get(&attempt.run).is_some_and(|run| run.cancels) {
                // Decided after the lease, but before that was durable.
                self.cancel(id, &attempt);
            }
        }
        self.index_session(id);
    }
}
