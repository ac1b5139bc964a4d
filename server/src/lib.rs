//! The process that owns the log: it decides and appends, and shows what follows over gRPC.
//!
//! Start at `streams` (load, decide, append: the only way into the log), then `scheduler_driver`
//! (who is given which job: the rules are in the engine's `scheduler`), then any file of `rpc` (wire in, execute, wire out).

pub mod auth;
mod blob_pieces;
mod bundles;
mod check;
mod clock;
mod command_error;
mod connections;
mod demand;
mod followers;
mod limits;
mod local;
mod log_reader;
mod metric_values;
mod metrics;
pub mod offline_backup;
mod open_log;
mod outbox;
mod output_reads;
mod outputs;
mod pages;
mod past_reads;
mod pauses;
mod pipeline_files;
mod rpc;
mod run_commands;
mod run_ids;
mod run_reads;
mod runs;
mod scheduler_driver;
mod serve;
mod server;
mod settings;
mod shared_scheduler;
mod status;
mod streams;
mod sync;
pub mod telemetry;
#[cfg(test)]
mod testing;
mod timers;
mod wire;
mod worker_list;
mod worker_sessions;

pub use auth::certificates::CertificatesError;
pub use clock::{Clock, SetClock, SystemClock};
pub use command_error::CommandError;
pub use limits::{Limit, Limits};
pub use run_commands::checks::{check_import_run, check_start_run};
pub use serve::{Access, ServeError, ServeTls};
pub use server::{OpenError, Server};

/// The URL of a store, the only thing that may be shown of it, and where its owner listens.
pub use towpath_storage::{StoreUrl, socket_in};

/// How the URLs of stores are written: of all backends, or only of those whose stores are still
/// there after their process has ended.
pub fn store_usages(durable_only: bool) -> String {
    towpath_storage::usages(towpath_storage::BACKENDS, durable_only)
}

/// How long a worker may be silent before its leases lapse, in milliseconds.
pub const LEASE_MS: u64 = 30_000;
