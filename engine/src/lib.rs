//! The rules of Towpath: what a pipeline file means, what may happen to a run, and what follows
//! from what happened.
//!
//! Pure. No clock, disk, socket, environment, random number, async or protobuf lives here; time
//! enters once per command, as an argument. Start at `event` (the facts), go on to `job` (the
//! table of states), `run` (the fold) and `decide` (the commands).

pub mod codec;
pub mod event;
pub mod ids;
pub mod plan;
pub mod time;
