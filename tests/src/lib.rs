//! What the stories are told with: a whole server in this process, typed clients of it, a worker
//! that does what the story says, and the files of the repository for the server rules.
//!
//! Everything goes through real gRPC over a pipe. Nothing here decides anything.

mod chance;
pub mod fuzz;
mod program;
mod real;
mod repository;
mod scripted;
mod skip;
mod test_server;

pub use chance::Chance;
pub use program::program;
pub use real::{RealWorker, keep_scripts_if_asked};
pub use repository::{Source, root, sources};
pub use scripted::{ScriptedWorker, failed, succeeded, succeeded_with};
pub use skip::{is_slow_run, skip};
pub use test_server::{
    ANA, BEGINNING, SeenJob, TestServer, WAIT_MAX, code, eventually, file, on_a_runtime,
    phase_word, start_request,
};
