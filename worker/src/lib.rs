//! The process that does the work: it runs a job's script as a process group that outlives it,
//! collects what the script prints and leaves behind, and hides secrets in all of that.
//!
//! Start at `execute` for one script, and at `protocol` for what a worker does in its sessions. It never opens a store and never decides what a job's end means for a run.

pub mod artifacts;
pub mod attempt;
pub mod attempts;
pub mod capture;
pub mod checkout;
mod driver;
pub mod environment;
pub mod execute;
#[doc(hidden)]
pub mod fuzzing;
mod install_artifact;
mod journal;
pub mod keeper;
pub mod mask;
pub mod open_files;
pub mod options;
mod output_pipe;
pub mod outputs;
mod own_disk;
mod process_group;
mod process_search;
pub mod protocol;
mod reads;
pub mod remote;
mod results;
mod runner;
pub mod session;
pub mod source_cache;
mod spool;
mod supervise;
pub mod telemetry;
mod wire;
mod workspace;

pub use attempt::{Adopted, ArtifactFile, Ended, Script};
pub use attempts::{AttemptsDir, AttemptsError, FoundAttempt, FoundState};
pub use capture::OutputChunk;
pub use environment::Environment;
pub use execute::{adopt, execute};
pub use options::{ConnectionState, SessionLimits, Stop, WorkerOptions};
pub use session::{WorkResult, WorkerError, work};
