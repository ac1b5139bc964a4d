//! `tow`: database migrations as pipelines, with every step in a log that can be proven.
//!
//! Thin: it reads the command line, talks gRPC to the server (which it brings along itself when
//! none runs), and draws the answers. Start at `cli`, then `start`, then any file of `commands`.

mod advice;
mod app;
mod args;
mod at;
mod atomic_file;
mod authors;
mod channel;
mod cli;
mod clock;
mod commands;
mod connect;
mod contexts;
mod credentials;
#[cfg(feature = "server")]
mod embedded;
#[cfg(not(feature = "server"))]
#[path = "embedded_absent.rs"]
mod embedded;
mod exit;
mod failure;
mod json;
mod pager;
mod render;
mod signals;
mod source;
mod start;
#[cfg(feature = "otlp")]
mod telemetry;
#[cfg(not(feature = "otlp"))]
#[path = "telemetry_absent.rs"]
mod telemetry;

use std::{io::Write as _, process::ExitCode};

/// Threads that move messages. Jobs are processes of their own.
const THREADS: usize = 2;

fn main() -> ExitCode {
    // Before anything else of this program: a keeper is small because it needs nothing of it.
    if let Some(code) = towpath_worker::keeper::serve_if_asked() {
        return code;
    }
    let cli = match cli::Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { exit::DONE };
            drop(error.print());
            return code.into();
        }
    };
    // Before any thread: the limit is one of the whole process, and what it starts inherits it.
    towpath_worker::open_files::raise_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let finished = match runtime {
        Ok(runtime) => {
            let finished = runtime.block_on(start::carry_out(cli));
            runtime.shutdown_background();
            finished
        }
        Err(error) => Err(error.into()),
    };
    match finished {
        Ok(code) => code.into(),
        Err(failure) if failure.is_broken_pipe() => exit::DONE.into(),
        Err(failure) => {
            drop(writeln!(anstream::stderr(), "{failure}"));
            failure.exit_code().into()
        }
    }
}
