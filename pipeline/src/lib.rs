//! The pipeline file: from its text to a plan that the engine runs.
//!
//! Pure, like the engine: no clock, disk, socket, environment or random number. Start at `file`
//! (text to plan, with every problem of the text located), continue to `schema` (the table of keys
//! that the reader and the JSON Schema share), `diagnostics` (how a problem is shown) and `graph`
//! (order, waves and drawings of a plan). Not here: the expressions of `if` and `${{ }}`. The
//! engine evaluates them while a run is under way, so `towpath_engine::expression` owns them; this
//! crate only checks them when a file is read.

pub mod diagnostics;
pub mod file;
pub mod graph;
pub mod pulsaride_jsonl;
pub mod schema;
