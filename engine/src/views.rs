//! What is shown of the events, folded one event at a time. Views decide nothing.

mod run_summary;

pub use run_summary::{EndCounts, RunEnd, RunSummary};
