//! `tow events`.

use std::io::{self, Write as _};

use serde::Serialize;
use serde_json::value::RawValue;
use tokio_stream::StreamExt as _;
use towpath_proto::{streams::Records, v1};

use super::{App, CommandResult, follow::connection_lost};
use crate::{exit, failure::Failure};

/// Show the stored log, one JSON object a line
///
/// `fact` is the record's payload, byte for byte.
#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Only those of this run: an id, the beginning of one, or `@latest` [default: the whole log]
    run: Option<String>,
    /// Those after this position (of a run: after this version)
    #[arg(long, default_value_t = 0, value_name = "N")]
    after: u64,
    /// Continue with later records
    #[arg(short, long)]
    follow: bool,
}

#[derive(Serialize)]
struct RecordJson<'a> {
    position: u64,
    stream: &'a str,
    version: u64,
    kind: &'a str,
    fact: &'a RawValue,
}

/// Prints records.
pub(crate) async fn events(app: &App, args: EventsArgs) -> CommandResult {
    let server = app.server().await?;
    let run = args.run.unwrap_or_default();
    let mut request = v1::FollowRequest { run, after: args.after, follow: args.follow };
    let mut records = Records::new(server.log().follow(request.clone()).await?.into_inner());
    loop {
        tokio::select! {
            record = records.next() => match record.map(|record| record.map_err(Failure::from)) {
                Some(Ok(record)) => {
                    print(&record)?;
                    let of_a_run = !request.run.is_empty();
                    request.after = if of_a_run { record.version } else { record.position };
                    if of_a_run {
                        // `@latest` may be another one by the time it is asked for again.
                        let named = record.stream.rsplit('/').next();
                        request.run = named.unwrap_or_default().to_owned();
                    }
                }
                Some(Err(failure)) if failure.is_aged() => {
                    records = Records::new(server.log().follow(request.clone()).await?.into_inner());
                }
                Some(Err(failure)) => return Err(failure),
                // Without an end of its own: the log continues elsewhere, or it is not known how.
                None if args.follow => return Err(connection_lost()),
                None => break,
            },
            _ = tokio::signal::ctrl_c() => return Ok(exit::INTERRUPTED),
        }
    }
    server.close().await;
    Ok(exit::DONE)
}

/// Prints one record on one line.
pub(crate) fn print(record: &v1::Record) -> Result<(), Failure> {
    let fact: &RawValue = serde_json::from_slice(&record.payload)?;
    let line = RecordJson {
        position: record.position,
        stream: &record.stream,
        version: record.version,
        kind: &record.kind,
        fact,
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
