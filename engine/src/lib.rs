//! The rules of Towpath: what a pipeline file means, what may happen to a run, and what follows
//! from what happened.
//!
//! Pure. No clock, disk, socket, environment, random number, async or protobuf lives here; time
//! enters once per command, as an argument. Start at `event` (the facts), go on to `job` (the
//! table of states), `run` (the fold) and `decide` (the commands).

pub mod captured;
pub mod codec;
pub mod decide;
pub mod diagnostics;
pub mod event;
pub mod expression;
pub mod gate;
pub mod graph;
pub mod ids;
pub mod job;
pub mod pipeline_file;
pub mod plan;
pub mod refusal;
pub mod retry;
pub mod run;
pub mod schema;
pub mod seed_lines;
pub mod source;
pub mod specimens;
pub mod time;
pub mod trace;
