//! Several commands, decided one after the other on a run in memory.

use std::borrow::Cow;

use towpath_engine::{
    decide::{CarryOutError, Command, LeaseJob, Written, carry_out},
    ids::{Actor, RunId},
    run::Run,
};
use towpath_storage::{DiskFull, FREE_BYTES_MIN};

use super::{CommandError, Runs};
use crate::telemetry::spans::{Ended, ended};

/// Bytes that are to be free, beyond what the store keeps free, for anything new to begin.
const NEW_WORK_BYTES_MIN: u64 = FREE_BYTES_MIN;

/// One of several commands could not be decided, and none of them is to be recorded.
pub(super) struct NotDecided {
    /// Which.
    pub(super) nth: usize,
    pub(super) error: CommandError,
    /// The run in memory has changed nevertheless: it must be read again.
    pub(super) spoiled: bool,
}

impl Runs {
    /// Decides `commands` one after the other on `run`.
    pub(super) fn decide_all(
        &self,
        id: &RunId,
        run: &mut Run,
        commands: &[Command],
        by: &Actor,
    ) -> Result<(Vec<Written>, Vec<Ended>), NotDecided> {
        let (mut written, mut spans) = (Vec::new(), Vec::new());
        for (nth, command) in commands.iter().enumerate() {
            match self.room_for(command) {
                Ok(()) => {}
                Err(full) if nth == 0 => {
                    let error = CommandError::Store(full.into());
                    return Err(NotDecided { nth, error, spoiled: false });
                }
                Err(_) => continue,
            }
            let command = self.with_busy(id, run, command);
            match carry_out(run, &command, by, self.now()) {
                Ok(more) => {
                    spans.extend(ended(run, &command, &more));
                    written.extend(more);
                }
                Err(CarryOutError::Refused(_)) if nth > 0 => {}
                Err(error) => {
                    let spoiled = error.spoils_the_run();
                    let error = match error {
                        CarryOutError::Refused(refusal) | CarryOutError::Unwritable(refusal) => {
                            refusal.into()
                        }
                        CarryOutError::Bug(bug) => bug.into(),
                    };
                    return Err(NotDecided { nth, error, spoiled });
                }
            }
        }
        Ok((written, spans))
    }

    /// New work needs more room than the end of what has begun.
    fn room_for(&self, command: &Command) -> Result<(), DiskFull> {
        match command {
            Command::Create(_)
            | Command::Import(_)
            | Command::Lease(_)
            | Command::Resume(_)
            | Command::Retry(_) => self.disk_space.check(NEW_WORK_BYTES_MIN),
            Command::Approve(_)
            | Command::Reject(_)
            | Command::Cancel(_)
            | Command::Report(_)
            | Command::Lose(_)
            | Command::PassTime => Ok(()),
        }
    }

    /// A lease needs to know which locks other runs hold at the moment when it is decided.
    fn with_busy<'c>(&self, id: &RunId, run: &Run, command: &'c Command) -> Cow<'c, Command> {
        let Command::Lease(lease) = command else { return Cow::Borrowed(command) };
        let busy = self.scheduler.locks_of_others(id, run.locks());
        Cow::Owned(Command::Lease(LeaseJob { busy, ..lease.clone() }))
    }
}
