//! The rules of Towpath: what may happen to a run, and what follows from what happened. What a
//! pipeline file means is in the crate `towpath-pipeline`.
//!
//! Pure. No clock, disk, socket, environment, random number, async or protobuf lives here; time
//! enters once per command, as an argument. Start at `event` (the facts), continue to `job` (the
//! table of states), `run` (the fold) and `decide` (the commands).

mod admission;
pub mod aggregate;
mod any_event;
pub mod captured_output;
pub mod code;
pub mod codec;
pub mod decide;
pub mod escape;
pub mod event;
pub mod expression;
mod failure;
pub mod gate;
pub mod ids;
pub mod job;
pub mod log_clock;
pub mod plan;
pub mod refusal;
pub mod results;
pub mod retry;
pub mod run;
pub mod scheduler;
pub mod settings;
pub mod source;
pub mod test_events;
pub mod time;
pub mod trace;
pub mod views;
