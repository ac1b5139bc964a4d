//! What is shown of the events, folded one event at a time. Views decide nothing.

mod board;
mod event_line;
mod explanation;
mod lifecycle;
mod list;
mod metrics;
mod run_summary;
mod spans;

pub use crate::aggregate::Summary;
pub use board::{Board, BoardChange, BoardStage, board_change, by_stage};
pub use event_line::{DetailValue, EventLine, event_line};
pub use explanation::{NEEDS_NAMED_MAX, Surroundings, WaitReason, WorkerSupply, explain};
pub use lifecycle::{LifecycleStep, lifecycle_step};
pub use list::{FindError, List, Listed};
pub use metrics::{EventCounters, RunMetrics};
pub use run_summary::{EndCounts, RunEnd, RunSummary};
pub use spans::{EndedSpan, SpanValue, ended_spans};
