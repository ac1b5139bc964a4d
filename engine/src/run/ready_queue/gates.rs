//! What gates need to find without a scan of all jobs: the results before them, when approvals
//! expire, and which were approved in advance.

use std::collections::BTreeSet;

use super::{Job, ReadyQueue};
use crate::{ids::Digest, time::Timestamp};

impl ReadyQueue {
    pub(in crate::run) fn gates(&self) -> impl Iterator<Item = u32> {
        self.gates.iter().copied()
    }

    /// The open stage has ended: its results are part of the digests of later gates.
    pub(super) fn pass_stage(&mut self, jobs: &[Job]) {
        if self.has_gates {
            // Chained from stage to stage: a gate then needs one digest, and not the results of a
            // whole run.
            let mut text = self.results_before();
            for index in &self.stage_jobs[self.open_stage] {
                text.push('\n');
                text.push_str(&jobs[*index as usize].result_line());
            }
            self.results_before = Some(Digest::of(text.as_bytes()));
        }
        self.open_stage += 1;
    }

    pub(in crate::run) fn first_preapproved(&self) -> Option<u32> {
        self.preapproved.first().copied()
    }

    pub(in crate::run) fn set_preapproved(&mut self, index: u32, approved: bool) {
        if approved {
            self.preapproved.insert(index);
        } else {
            self.preapproved.remove(&index);
        }
    }

    /// The first moment at which approvals expire.
    pub(in crate::run) fn next_lapse(&self) -> Option<Timestamp> {
        self.lapses.first().map(|(until, _)| *until)
    }

    /// The jobs whose approvals have expired by `now`.
    pub(in crate::run) fn lapsed(&self, now: Timestamp) -> impl Iterator<Item = u32> {
        self.lapses.range(..=(now, u32::MAX)).map(|(_, index)| *index)
    }

    /// Which stage job `index` is in.
    pub(in crate::run) fn stage(&self, index: u32) -> u32 {
        self.stage_of[index as usize]
    }

    /// What job `index` needs, and what that needs, within its own stage.
    pub(in crate::run) fn within_stage(&self, index: u32) -> BTreeSet<u32> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![index]);
        // Iterative, because a stage may be a chain of 100,000 jobs.
        while let Some(next) = open.pop() {
            for need in self.needs(next) {
                if self.stage(*need) == self.stage(index) && seen.insert(*need) {
                    open.push(*need);
                }
            }
        }
        seen
    }

    /// Over the results of all stages before the open one, in words; empty where there are none.
    pub(in crate::run) fn results_before(&self) -> String {
        self.results_before.map(|digest| digest.to_string()).unwrap_or_default()
    }
}
