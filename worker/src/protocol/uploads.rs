//! What a worker sends next: the attempts with something to send take turns.

use towpath_engine::ids::AttemptId;

use super::{Message, Part, Protocol};

impl<J> Protocol<J> {
    /// What is to be sent next beside attempts: a heartbeat, a drain, a goodbye. Asked whenever the
    /// connection has room.
    pub fn next_control(&mut self) -> Option<Message> {
        let takes_nothing = self.takes_nothing_now();
        self.link.next_control(takes_nothing)
    }

    /// Whether [`Protocol::next_control`] has something.
    pub fn has_control(&self) -> bool {
        self.link.has_control(self.takes_nothing_now())
    }

    /// What of an attempt is to be sent next. Asked whenever the connection has room, and nothing
    /// that was answered before is still being read.
    pub fn next_upload(&mut self) -> Option<Message> {
        // A drain goes first: the server uses a slot again as soon as it has a report, and must not
        // use that of a worker which cannot write its own files.
        if !self.has_upload() || self.has_control() {
            return None;
        }
        while let Some(attempt) = self.uploads.pop_front() {
            let Some(held) = self.attempts.get_mut(&attempt) else { continue };
            held.queued = false;
            if let Some(message) = held.next_message(&attempt) {
                self.queue_upload(&attempt);
                return Some(message);
            }
        }
        None
    }

    /// Whether [`Protocol::next_upload`] may have something.
    pub fn has_upload(&self) -> bool {
        self.link.is_open() && !self.uploads.is_empty()
    }

    pub(super) fn queue_upload(&mut self, attempt: &AttemptId) {
        let open = self.link.is_open();
        let Some(held) = self.attempts.get_mut(attempt) else { return };
        if open && !held.queued && held.has_message() {
            held.queued = true;
            self.uploads.push_back(attempt.clone());
        }
    }

    pub(super) fn output_grew(&mut self, attempt: &AttemptId, length: u64) {
        if let Some(held) = self.attempts.get_mut(attempt) {
            held.output = held.output.max(length);
            self.queue_upload(attempt);
        }
    }

    pub(super) fn unreadable(&mut self, attempt: &AttemptId, part: &Part, reason: &str) {
        if let Some(held) = self.attempts.get_mut(attempt) {
            held.part_unreadable(part, reason);
            self.queue_upload(attempt);
        }
    }
}
