//! `tow logs`.

use std::io::{self, Write as _};

use serde::Serialize;
use tokio_stream::StreamExt as _;
use towpath_engine::captured::{Line, Source, lines, printable};
use towpath_engine::code::ErrorCode;
use towpath_proto::v1;

use super::{Desk, Finished};
use crate::{
    cli::{OfRun, Output},
    connect::Server,
    exit,
    failure::Failure,
};

/// Show what a job printed
///
/// Standard output of the job goes to standard output, its standard error to standard error.
/// Secrets were masked before anything was kept, and whatever could steer a terminal is shown as
/// signs.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The job
    job: String,
    #[command(flatten)]
    run: OfRun,
    /// Which try [default: the newest]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    attempt: u32,
    /// Go on as long as the job runs
    #[arg(short, long)]
    follow: bool,
    /// Put the time since the start before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Print the kept bytes as they are, with nothing made harmless
    #[arg(long)]
    raw: bool,
}

#[derive(Serialize)]
struct LineJson {
    at_ms: u64,
    source: &'static str,
    text: String,
}

/// Shows a job's output, and follows it if asked.
pub(crate) async fn logs(desk: &Desk, args: LogsArgs) -> Finished {
    let server = desk.server().await?;
    let shown = show(desk, &server, args).await;
    server.close().await;
    shown
}

async fn show(desk: &Desk, server: &Server, args: LogsArgs) -> Finished {
    let LogsArgs { job, run, attempt, follow, timestamps, raw } = args;
    let request = v1::ReadOutputRequest { run: run.run, job, attempt, follow };
    let mut chunks = server.runs().read_output(request.clone()).await?.into_inner();
    let (mut open, mut seen, mut again) = (Vec::new(), 0, 0);
    let mut printer = Printer { desk, timestamps, raw, inside: [false; 2] };
    while let Some(chunk) = chunks.next().await {
        let v1::OutputChunk { content } = match chunk.map_err(Failure::from) {
            Ok(chunk) => chunk,
            Err(failure) if failure.is_aged() => {
                // From the beginning, over another connection: what was seen is passed over.
                chunks = server.runs().read_output(request.clone()).await?.into_inner();
                again = seen;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let known = again.min(content.len());
        again -= known;
        let fresh = content.get(known..).unwrap_or_default();
        seen += fresh.len();
        open.extend_from_slice(fresh);
        let Some(end) = open.iter().rposition(|byte| *byte == b'\n') else { continue };
        let rest = open.split_off(end + 1);
        let whole = std::mem::replace(&mut open, rest);
        for line in lines(&whole) {
            let line = line.map_err(|error| {
                Failure::new(ErrorCode::BlobDamaged, error.to_string(), "See `tow doctor`.")
            })?;
            printer.print(&line)?;
        }
    }
    Ok(exit::DONE)
}

/// Everything that the newest try of `job` printed, in the captured format.
pub(crate) async fn whole_output(
    server: &Server,
    run: &str,
    job: &str,
) -> Result<Vec<u8>, Failure> {
    let request = v1::ReadOutputRequest {
        run: run.to_owned(),
        job: job.to_owned(),
        attempt: 0,
        follow: false,
    };
    let mut chunks = server.runs().read_output(request).await?.into_inner();
    let mut output = Vec::new();
    while let Some(chunk) = chunks.next().await {
        output.extend_from_slice(&chunk?.content);
    }
    Ok(output)
}

struct Printer<'a> {
    desk: &'a Desk,
    timestamps: bool,
    raw: bool,
    /// Whether the newest record of out, err left its line open.
    inside: [bool; 2],
}

impl Printer<'_> {
    fn print(&mut self, line: &Line<'_>) -> Result<(), Failure> {
        let source = match line.source {
            Source::Out => "out",
            Source::Err => "err",
            Source::Note => "note",
        };
        if self.desk.output() != Output::Text {
            let text = printable(line.bytes, false);
            let text = serde_json::to_string(&LineJson { at_ms: line.at_ms, source, text })?;
            return self.desk.print(&(text + "\n"));
        }
        let side = usize::from(line.source != Source::Out);
        let mut bytes = Vec::new();
        if self.timestamps && !self.inside[side] {
            let (seconds, ms) = (line.at_ms / 1_000, line.at_ms % 1_000);
            bytes.extend_from_slice(format!("{seconds:>6}.{ms:03} {source:<4} ").as_bytes());
        }
        if self.raw {
            bytes.extend_from_slice(line.bytes);
        } else {
            bytes.extend_from_slice(printable(line.bytes, self.desk.style.colour).as_bytes());
        }
        if line.ends {
            bytes.push(b'\n');
        }
        self.inside[side] = !line.ends;
        if line.source == Source::Out {
            io::stdout().lock().write_all(&bytes)?;
        } else {
            io::stderr().lock().write_all(&bytes)?;
        }
        Ok(())
    }
}
