//! `tow logs`.

use crate::clock::now;
use std::io::{self, Write as _};

use serde::Serialize;
use tokio_stream::StreamExt as _;
use towpath_engine::{
    captured_output::{OutputLine, OutputSource, lines, printable},
    code::ErrorCode,
    codec,
    event::Fact,
};
use towpath_proto::{streams::Records, v1};

use super::{App, CommandResult, follow::connection_lost};
use crate::{
    args::{Output, RunArg},
    at::{AtArg, as_of_line},
    connect::ServerConnection,
    exit,
    failure::Failure,
    render::{board::is_over, explanation::explained, safe},
};

/// Most lines of `--tail`.
const TAIL_LINES_MAX: i64 = 100_000;
/// Most bytes that are kept in memory for `--tail`. A line may be as long as an output, and an
/// output is bounded by far more than a terminal shows.
const TAIL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Show what a job printed
///
/// Standard output of the job goes to standard output, its standard error to standard error.
/// Where a part of a long output is omitted, a line in brackets on standard output says so. Secrets
/// were masked before the output was stored, and control characters are shown as symbols.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The job
    job: String,
    #[command(flatten)]
    run: RunArg,
    /// Which attempt [default: the newest]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    attempt: u32,
    #[command(flatten)]
    at: AtArg,
    /// Follow until the job has ended, through all its attempts; with `--attempt`, until that one
    /// has
    #[arg(short, long, conflicts_with = "at")]
    follow: bool,
    /// Show only the last lines of the existing output
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=TAIL_LINES_MAX))]
    tail: Option<u32>,
    /// Put the time since the start before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Print the stored bytes without escaping control characters
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
///
/// The process that works on a run may end while its output is followed, with the run or before it.
/// What it recorded is in the store, so that the rest is read from there.
pub(crate) async fn logs(app: &App, args: LogsArgs) -> CommandResult {
    let LogsArgs { job, run, attempt, at, follow, tail, timestamps, raw } = args;
    let (output, colour) = (app.output(), app.style.colour);
    let printer = Printer { output, colour, timestamps, raw, inside: [false; 2] };
    let mut shown = Shown { printer, tail: tail.map(|lines| lines as usize), attempt: 0, bytes: 0 };
    let mut request = v1::ReadOutputRequest { run: run.run, job, attempt, follow };
    let mut server = app.server().await?;
    if at.at.is_some() {
        let had_begun = set_attempt(app, &server, &mut request, at).await;
        if !matches!(had_begun, Ok(true)) {
            server.close().await;
            return had_begun.map(|_| exit::DONE);
        }
    }
    let mut is_lost = false;
    loop {
        let failure = match show(app, &server, &mut shown, &mut request, is_lost).await {
            // Without `--follow` the person asked for what there is, and a lost connection is a
            // failure.
            Err(failure) if follow => failure,
            finished => {
                server.close().await;
                return finished;
            }
        };
        let waiting = || app.say("The server does not answer any more; connecting again.");
        server = server.reconnect_after(failure, &app.url(), waiting).await?;
        is_lost = true;
    }
}

/// Asks for the attempt that was the newest then; says whether there was one.
async fn set_attempt(
    app: &App,
    server: &ServerConnection,
    request: &mut v1::ReadOutputRequest,
    at: AtArg,
) -> Result<bool, Failure> {
    let (run, job) = (request.run.clone(), request.job.clone());
    let asked = v1::GetJobRequest { run, job, at: at.message(), ..Default::default() };
    let answer = server.runs().get_job(asked).await?.into_inner();
    if let Some(as_of) = &answer.as_of {
        app.say(&as_of_line(as_of));
    }
    let newest = answer.job.unwrap_or_default().attempt;
    if newest == 0 {
        app.say("The job had not begun.");
    }
    if request.attempt == 0 {
        request.attempt = newest;
    }
    Ok(newest > 0)
}

async fn show(
    app: &App,
    server: &ServerConnection,
    shown: &mut Shown,
    request: &mut v1::ReadOutputRequest,
    is_lost: bool,
) -> CommandResult {
    if request.follow {
        // `@latest` may be another one by the time it is asked for again.
        request.run = server.run(&request.run).await?.id;
    }
    // Who owns the store alone would wait for a job that no process works on, and keep away the
    // one that could.
    let can_change = !server.is_ours();
    if request.follow && !can_change && !is_lost {
        app.say("No process works on this run. `tow resume` continues it.");
    }
    if request.follow && can_change && request.attempt == 0 {
        return follow_job(app, server, shown, request.clone()).await;
    }
    let follow = request.follow && can_change;
    let mut asked = v1::ReadOutputRequest { follow, ..request.clone() };
    if !is_lost {
        shown.show_attempt(server, &asked).await?;
        return Ok(exit::DONE);
    }
    let (run, job) = (asked.run.clone(), asked.job.clone());
    let request = v1::GetJobRequest { run, job, ..Default::default() };
    let job = server.runs().get_job(request).await?.into_inner().job.unwrap_or_default();
    let last = if asked.attempt == 0 { job.attempt } else { asked.attempt };
    // Of the attempts before the first look only the newest is shown.
    let first = if shown.attempt == 0 { last.max(1) } else { shown.attempt };
    for attempt in first..=last {
        asked.attempt = attempt;
        shown.show_attempt(server, &asked).await?;
    }
    // Done would say that nothing follows.
    if is_over(job.state()) || job.attempt > last { Ok(exit::DONE) } else { Err(connection_lost()) }
}

/// Shows one attempt of a job after the other until the job is over.
async fn follow_job(
    app: &App,
    server: &ServerConnection,
    shown: &mut Shown,
    asked: v1::ReadOutputRequest,
) -> CommandResult {
    // Subscribed before the state is read, so that no change falls between the two.
    let mut changes = Changes::of(server, &asked.run, &asked.job).await?;
    // An attempt that was shown before the connection was lost may have printed more.
    let (mut newest, mut waited) = (shown.attempt.saturating_sub(1), None);
    loop {
        let request =
            v1::ExplainJobRequest { run: asked.run.clone(), job: asked.job.clone(), at: None };
        let answer = server.runs().explain_job(request).await?.into_inner();
        let job = answer.job.clone().unwrap_or_default();
        if job.attempt > newest {
            // Of the attempts before the first look only the newest is shown.
            let first = if shown.attempt == 0 { job.attempt } else { newest + 1 };
            for attempt in first..=job.attempt {
                let request = v1::ReadOutputRequest { attempt, ..asked.clone() };
                shown.show_attempt(server, &request).await?;
            }
            newest = job.attempt;
            continue;
        }
        if is_over(job.state()) {
            return Ok(exit::DONE);
        }
        // A job passes through several states before it begins; one sentence for each attempt.
        if job.state() != v1::JobState::Running && waited.replace(newest) != Some(newest) {
            app.say(&safe(&explained(&answer, now()).sentence));
        }
        changes.next().await?;
    }
}

/// What is recorded of one job.
struct Changes<'a> {
    server: &'a ServerConnection,
    job: String,
    request: v1::FollowRequest,
    records: Records,
}

impl<'a> Changes<'a> {
    /// What is recorded of `job` from now on.
    async fn of(server: &'a ServerConnection, run: &str, job: &str) -> Result<Self, Failure> {
        let after = server.run(run).await?.version;
        let request = v1::FollowRequest { run: run.to_owned(), after, follow: true };
        let records = Records::new(server.log().follow(request.clone()).await?.into_inner());
        Ok(Self { server, job: job.to_owned(), request, records })
    }

    /// Waits until something is recorded that may change the job.
    async fn next(&mut self) -> Result<(), Failure> {
        loop {
            let record = match self.records.next().await.map(|record| record.map_err(Failure::from))
            {
                Some(Ok(record)) => record,
                Some(Err(failure)) if failure.is_aged() => {
                    self.records = Records::new(
                        self.server.log().follow(self.request.clone()).await?.into_inner(),
                    );
                    continue;
                }
                Some(Err(failure)) => return Err(failure),
                None => return Err(connection_lost()),
            };
            // Where to continue if the connection is replaced because of its age.
            self.request.after = record.version;
            // An event of a kind that this program does not know may change any job, and so may
            // one that names none, such as the end of the run.
            let of_another = codec::decode(&record.payload).is_ok_and(|fact: Fact| {
                fact.event.job().is_some_and(|job| job.as_str() != self.job)
            });
            if !of_another {
                return Ok(());
            }
        }
    }
}

/// Where output goes.
struct Shown {
    printer: Printer,
    /// How many lines of what there is are shown; afterwards everything is.
    tail: Option<usize>,
    /// The attempt that was shown last; 0 before the first.
    attempt: u32,
    /// How many bytes of its whole records were shown or left out, so that a second connection
    /// shows none twice.
    bytes: usize,
}

impl Shown {
    /// Shows what an attempt printed, and what it prints as long as it runs, if asked to follow.
    async fn show_attempt(
        &mut self,
        server: &ServerConnection,
        request: &v1::ReadOutputRequest,
    ) -> Result<(), Failure> {
        let runs = || server.runs();
        if self.attempt != request.attempt {
            (self.attempt, self.bytes) = (request.attempt, 0);
        }
        if let Some(most) = self.tail.take() {
            let request = v1::ReadOutputRequest { follow: false, ..request.clone() };
            let mut chunks = runs().read_output(request).await?.into_inner();
            let (mut whole, mut last) = (WholeLines::default(), LastRecords::new(most));
            while let Some(chunk) = chunks.next().await {
                last.take(&whole.take(&chunk?.content));
            }
            self.printer.print(&last.records)?;
            self.bytes = whole.taken;
        }
        let mut chunks = runs().read_output(request.clone()).await?.into_inner();
        // What was seen is ignored: a stream begins with the first byte.
        let (mut whole, mut again) = (WholeLines::default(), self.bytes);
        while let Some(chunk) = chunks.next().await {
            let v1::ReadOutputResponse { content } = match chunk.map_err(Failure::from) {
                Ok(chunk) => chunk,
                Err(failure) if failure.is_aged() => {
                    chunks = runs().read_output(request.clone()).await?.into_inner();
                    (again, whole) = (self.bytes, WholeLines::default());
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            // Bytes that were printed before the connection was lost are skipped.
            let seen = again.min(content.len());
            again -= seen;
            let records = whole.take(content.get(seen..).unwrap_or_default());
            self.bytes += records.len();
            self.printer.print(&records)?;
        }
        Ok(())
    }
}

/// Cuts a stream of bytes after whole records.
#[derive(Default)]
struct WholeLines {
    /// Bytes in whole records so far.
    taken: usize,
    /// The beginning of a record. Not longer than a record may be.
    open: Vec<u8>,
}

impl WholeLines {
    /// The whole records that `content` completes.
    fn take(&mut self, content: &[u8]) -> Vec<u8> {
        self.open.extend_from_slice(content);
        // A part of the stream may end inside a record, and half of one cannot be read.
        let end = self.open.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let rest = self.open.split_off(end);
        self.taken += end;
        std::mem::replace(&mut self.open, rest)
    }
}

/// The last records of an output, for `--tail`.
struct LastRecords {
    lines_max: usize,
    lines: usize,
    records: Vec<u8>,
}

impl LastRecords {
    fn new(lines_max: usize) -> Self {
        Self { lines_max, lines: 0, records: Vec::new() }
    }

    fn take(&mut self, records: &[u8]) {
        self.records.extend_from_slice(records);
        self.lines += lines(records).filter_map(Result::ok).filter(|line| line.ends).count();
        let mut cut = 0;
        for line in lines(&self.records) {
            // A line without an end could be as long as an output may be: it loses its beginning.
            let too_long = self.records.len() - cut > TAIL_BYTES_MAX;
            let Ok(line) = line else { break };
            if self.lines <= self.lines_max && !too_long {
                break;
            }
            self.lines -= usize::from(line.ends);
            let record = self.records.get(cut..).unwrap_or_default();
            cut += record.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        }
        self.records.drain(..cut);
    }
}

/// Everything that the newest attempt of `job` printed, in the captured format.
pub(crate) async fn whole_output(
    server: &ServerConnection,
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

struct Printer {
    output: Output,
    colour: bool,
    timestamps: bool,
    raw: bool,
    /// Whether the newest record of out, err left its line open.
    inside: [bool; 2],
}

/// Bytes for standard output, and for standard error.
type Sides = (Vec<u8>, Vec<u8>);

impl Printer {
    /// Prints whole records.
    fn print(&mut self, records: &[u8]) -> Result<(), Failure> {
        for line in lines(records) {
            let line = line.map_err(|error| {
                Failure::new(ErrorCode::BlobDamaged, error.to_string(), "See `tow doctor`.")
            })?;
            let (out, err) = self.sides(&line)?;
            io::stdout().lock().write_all(&out)?;
            io::stderr().lock().write_all(&err)?;
        }
        Ok(io::stdout().lock().flush()?)
    }

    /// What is printed of `line`, and where.
    fn sides(&mut self, line: &OutputLine<'_>) -> Result<Sides, Failure> {
        let source = match line.source {
            OutputSource::Out => "out",
            OutputSource::Err => "err",
            OutputSource::Note => "note",
        };
        if self.output != Output::Text {
            let text = printable(line.bytes, false);
            let text = serde_json::to_string(&LineJson { at_ms: line.at_ms, source, text })?;
            return Ok(((text + "\n").into_bytes(), Vec::new()));
        }
        // A note marks missing output. A reader of only standard output would take what
        // is before and after it for one piece. Raw bytes stay those of the job.
        let is_gap = line.source == OutputSource::Note;
        let to_out = line.source == OutputSource::Out || (is_gap && !self.raw);
        // Each stream has its own open line: output and errors of a job alternate.
        let side = usize::from(!to_out);
        let mut bytes = Vec::new();
        if is_gap && std::mem::take(&mut self.inside[side]) {
            bytes.push(b'\n');
        }
        if self.timestamps && !self.inside[side] {
            let (seconds, ms) = (line.at_ms / 1_000, line.at_ms % 1_000);
            bytes.extend_from_slice(format!("{seconds:>6}.{ms:03} {source:<4} ").as_bytes());
        }
        if is_gap {
            let text = format!("[{}]", printable(line.bytes, false));
            bytes.extend_from_slice(text.as_bytes());
        } else if self.raw {
            bytes.extend_from_slice(line.bytes);
        } else {
            bytes.extend_from_slice(printable(line.bytes, self.colour).as_bytes());
        }
        if line.ends {
            bytes.push(b'\n');
        }
        self.inside[side] = !line.ends;
        Ok(if to_out { (bytes, Vec::new()) } else { (Vec::new(), bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(source: OutputSource, ends: bool, bytes: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        OutputLine { at_ms: 1_500, source, ends, bytes }.write(&mut record);
        record
    }

    fn shown(output: Output, raw: bool, records: &[Vec<u8>]) -> (String, String) {
        let mut printer =
            Printer { output, colour: false, timestamps: false, raw, inside: [false; 2] };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for line in lines(&records.concat()) {
            let sides = printer.sides(&line.unwrap()).unwrap();
            out.extend(sides.0);
            err.extend(sides.1);
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn a_gap_is_marked_where_it_is() {
        let note = b"9 bytes of output omitted";
        let records = [
            record(OutputSource::Out, false, b"before"),
            record(OutputSource::Note, true, note),
            record(OutputSource::Err, true, b"error"),
            record(OutputSource::Out, true, b"after"),
        ];
        let (out, err) = shown(Output::Text, false, &records);
        assert_eq!(out, "before\n[9 bytes of output omitted]\nafter\n");
        assert_eq!(err, "error\n");

        let (out, _) = shown(Output::Text, true, &records);
        assert_eq!(out, "beforeafter\n", "raw bytes are those of the job alone");

        let (out, _) = shown(Output::Jsonl, false, &records);
        let sources: Vec<_> = out
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["source"].clone())
            .collect();
        assert_eq!(sources, ["out", "note", "err", "out"]);
    }

    #[test]
    fn the_last_lines_are_kept_whole_and_bounded() {
        let all: Vec<u8> = (1..=9)
            .flat_map(|n| record(OutputSource::Out, true, format!("{n}").as_bytes()))
            .collect();
        let mut whole = WholeLines::default();
        let mut last = LastRecords::new(3);
        for piece in all.chunks(5) {
            last.take(&whole.take(piece));
        }
        assert_eq!(whole.taken, all.len());
        let kept: Vec<_> = lines(&last.records).map(|line| line.unwrap().bytes).collect();
        assert_eq!(kept, [b"7", b"8", b"9"]);

        let piece = record(OutputSource::Out, false, &[b'x'; 60_000]);
        let mut endless = LastRecords::new(1);
        for _ in 0..1_000 {
            endless.take(&piece);
        }
        assert!(endless.records.len() <= TAIL_BYTES_MAX);
        assert!(endless.records.len() > TAIL_BYTES_MAX / 2);
    }

    #[test]
    fn no_last_lines_are_none() {
        let mut none = LastRecords::new(0);
        none.take(&record(OutputSource::Out, true, b"a"));
        assert!(none.records.is_empty());
    }
}
