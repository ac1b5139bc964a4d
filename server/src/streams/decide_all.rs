//! Several commands, decided one after the other on a state in memory.

use towpath_engine::{
    aggregate::{Aggregate, CarryOutError, Written, carry_out},
    ids::Actor,
};

use super::{StreamHooks, Streams};
use crate::command_error::CommandError;

/// One of several commands could not be decided, and none of them is to be recorded.
pub(super) struct NotDecided {
    /// Which.
    pub(super) nth: usize,
    pub(super) error: CommandError,
    /// The state in memory has changed nevertheless: it must be read again.
    pub(super) spoiled: bool,
}

impl<A: Aggregate, H: StreamHooks<A>> Streams<A, H> {
    /// Decides `commands` one after the other on `state`.
    pub(super) fn decide_all(
        &self,
        id: &A::Id,
        state: &mut A,
        commands: &[A::Command],
        by: &Actor,
        pending: &mut H::Pending,
    ) -> Result<Vec<Written<A::Event>>, NotDecided> {
        let mut written = Vec::new();
        for (nth, command) in commands.iter().enumerate() {
            let command = match self.hooks.prepare(id, state, command) {
                Ok(command) => command,
                Err(error) if nth == 0 => return Err(NotDecided { nth, error, spoiled: false }),
                Err(_) => continue,
            };
            match carry_out(state, &command, by, self.log.now()) {
                Ok(more) => {
                    self.hooks.carried_out(state, &command, &more, pending);
                    written.extend(more);
                }
                Err(CarryOutError::Refused(_)) if nth > 0 => {}
                Err(error) => {
                    let spoiled = error.spoils_the_state();
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
        Ok(written)
    }
}
