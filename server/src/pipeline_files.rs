//! Pipeline files as clients send them, and what they mean. Reading one has a bound and a thread.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use towpath_engine::{event::bounded_text, gate::Authors, ids::Digest, plan::Plan, source::Source};
use towpath_pipeline::{diagnostics::Diagnostics, file};
use towpath_storage::StoreError;

use crate::command_error::CommandError;

/// How many pipeline files are read at once. A file at its bounds takes a processor for seconds, and
/// a client that may start runs may send many.
const AT_ONCE_MAX: usize = 2;
/// Problems of a file that a refusal names. Source: a refusal is a header of HTTP, and clients take
/// few KiB of those.
const PROBLEMS_MAX: usize = 20;
/// Longest text of one of them, in bytes.
const PROBLEM_BYTES_MAX: usize = 200;

/// A pipeline file, and what the client knows about it.
#[derive(Clone, Debug)]
pub(crate) struct SentFile {
    pub(crate) name: String,
    pub(crate) folder: String,
    pub(crate) content: Bytes,
    pub(crate) source: Option<Source>,
    pub(crate) authors: Option<Authors>,
}

/// A pipeline file and what it means.
#[derive(Debug)]
pub(crate) struct ReadFile {
    pub(crate) name: String,
    pub(crate) folder: String,
    pub(crate) sha256: Digest,
    pub(crate) plan: Plan,
    pub(crate) source: Option<Source>,
    pub(crate) authors: Option<Authors>,
}

/// Reads pipeline files.
#[derive(Clone, Debug)]
pub(crate) struct PipelineFiles {
    turns: Arc<Semaphore>,
}

impl PipelineFiles {
    pub(crate) fn new() -> Self {
        Self { turns: Arc::new(Semaphore::new(AT_ONCE_MAX)) }
    }

    /// Reads `file` beside what answers other requests: reading does not stop in between, so that
    /// heartbeats would wait for it.
    pub(crate) async fn read(&self, file: SentFile) -> Result<ReadFile, CommandError> {
        let closed = || CommandError::Store(StoreError::Closed);
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| closed())?;
        let read = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, also if the request is given up meanwhile: a client that
            // asks and gives up again and again would else use every processor.
            let _turn = turn;
            meaning(file)
        });
        read.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn meaning(file: SentFile) -> Result<ReadFile, CommandError> {
    let SentFile { name, folder, content, source, authors } = file;
    let parsed = file::parse_bytes(&name, &content).map_err(|diagnostics| {
        let text = String::from_utf8_lossy(&content);
        CommandError::FileInvalid { name: name.clone(), problems: problems(&diagnostics, &text) }
    })?;
    Ok(ReadFile { sha256: Digest::of(&content), plan: parsed.plan, name, folder, source, authors })
}

/// The first problems of a file, one on each line: as many as fit the head of a message.
fn problems(diagnostics: &Diagnostics, text: &str) -> String {
    let all = diagnostics.json(text);
    let shown = all.iter().take(PROBLEMS_MAX).map(|problem| {
        let (line, column) = (problem.line, problem.column);
        let text = format!("{line}:{column} {} {}", problem.code, problem.message);
        bounded_text(text, PROBLEM_BYTES_MAX)
    });
    let mut lines: Vec<String> = shown.collect();
    if all.len() > PROBLEMS_MAX {
        lines.push(format!("… and {} more", all.len() - PROBLEMS_MAX));
    }
    lines.join("\n")
}
