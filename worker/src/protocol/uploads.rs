//! What a worker sends next: the attempts with something to send take turns, and one whose next part
//! is still being read is passed over.

use towpath_engine::ids::AttemptId;

use super::{Message, Part, Protocol, UploadKind, attempt::Held};

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

    /// What of an attempt is to be sent next, if it `may` be of its kind. Asked whenever the
    /// connection has room. A part is to be read and sent; until then nothing more is answered of
    /// its attempt. What follows of the attempt is answered after [`Protocol::part_sent`] or
    /// [`super::Input::Unreadable`].
    pub fn next_upload(&mut self, may: impl Fn(UploadKind) -> bool) -> Option<Message> {
        // A drain goes first: the server uses a slot again as soon as it has a report, and must not
        // use that of a worker which cannot write its own files.
        if !self.link.is_open() || self.has_control() {
            return None;
        }
        while let Some(attempt) = self.place_of_next(&may).and_then(|at| self.uploads.remove(at)) {
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
    pub fn has_upload(&self, may: impl Fn(UploadKind) -> bool) -> bool {
        self.link.is_open() && self.place_of_next(&may).is_some()
    }

    /// A part that was answered is read and on its way.
    pub fn part_sent(&mut self, attempt: &AttemptId) {
        if let Some(held) = self.attempts.get_mut(attempt) {
            held.part_sent();
            self.queue_upload(attempt);
        }
    }

    /// The first in the queue that may be sent now: one that waits for the files of a job must not
    /// hold up the report of another.
    fn place_of_next(&self, may: &impl Fn(UploadKind) -> bool) -> Option<usize> {
        self.uploads.iter().position(|attempt| {
            // One that has nothing to send any more is taken out of the queue.
            let kind = self.attempts.get(attempt).and_then(Held::next_kind);
            kind.is_none_or(may)
        })
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
