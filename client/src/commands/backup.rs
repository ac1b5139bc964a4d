//! `tow backup`.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;
use towpath_server::{
    StoreUrl,
    offline_backup::{self, BackupSummary},
};

use super::{App, CommandResult, validate::counted};
use crate::{
    args::Output,
    exit,
    failure::Failure,
    render::{Style, safe},
};

/// Write the whole store to one file
///
/// Every record and every blob is verified on the way, and the file appears whole or not at all.
/// The store must not be in use: wait until `tow` has ended.
#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    /// The file to write, which must not exist yet
    file: PathBuf,
}

#[derive(Serialize)]
struct KeptJson<'a> {
    file: String,
    store: &'a str,
    records: u64,
    blobs: u64,
    bytes: u64,
    hash: String,
}

/// Writes the store to a file.
pub(crate) async fn backup(app: &App, args: BackupArgs) -> CommandResult {
    let url = app.url();
    let mut progress = Progress::new(&app.style);
    let kept =
        offline_backup::backup(&url, &args.file, |bytes| progress.show(|| size_words(bytes))).await;
    progress.clear();
    report(app, &args.file, &url, "Backed up", &kept?)?;
    Ok(exit::DONE)
}

/// Says what a backup holds, whichever way it went.
pub(super) fn report(
    app: &App,
    file: &std::path::Path,
    store: &str,
    done: &str,
    kept: &BackupSummary,
) -> Result<(), Failure> {
    let BackupSummary { records, blobs, bytes, hash } = *kept;
    let hash = hex_of(&hash);
    let store = StoreUrl::shown(store);
    let file = safe(&file.to_string_lossy());
    if app.output() != Output::Text {
        return app.json(&KeptJson { file, store: &store, records, blobs, bytes, hash });
    }
    let numbers = format!(
        "{}, {}, {}",
        counted(usize::try_from(records).unwrap_or(usize::MAX), "record"),
        counted(usize::try_from(blobs).unwrap_or(usize::MAX), "blob"),
        size_words(bytes),
    );
    app.print(&format!(
        "{done}: {numbers}\n  file   {file}\n  store  {}\n  hash   {hash}\n",
        safe(&store)
    ))
}

/// Bytes in hexadecimal.
pub(super) fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number of bytes as people say it, such as `41.2 GB`.
pub(super) fn size_words(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1_000 {
        return format!("{bytes} bytes");
    }
    let (mut tenths, mut unit) = (bytes / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1_000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// One line on standard error that says how far something has come: only for a person who watches,
/// and only if it takes a while.
pub(super) struct Progress {
    watched: bool,
    width: usize,
    began: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// Before the first line.
    const SILENT: Duration = Duration::from_secs(1);
    /// Between two lines.
    const EVERY: Duration = Duration::from_millis(100);

    pub(super) fn new(style: &Style) -> Self {
        let watched = io::stderr().is_terminal();
        Self { watched, width: style.width, began: Instant::now(), shown: None }
    }

    /// Shows what `words` says, if it is time to.
    pub(super) fn show(&mut self, words: impl FnOnce() -> String) {
        let is_early = match self.shown {
            Some(shown) => shown.elapsed() < Self::EVERY,
            None => self.began.elapsed() < Self::SILENT,
        };
        if self.watched && !is_early {
            // A line that wraps could not be removed by a carriage return.
            let words: String = words().chars().take(self.width.saturating_sub(3)).collect();
            drop(write!(io::stderr().lock(), "\r\u{1b}[K  {words}"));
            self.shown = Some(Instant::now());
        }
    }

    /// Removes the line.
    pub(super) fn clear(&mut self) {
        if self.shown.take().is_some() {
            drop(write!(io::stderr().lock(), "\r\u{1b}[K"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_in_three_digits() {
        let words = [0, 999, 1_000, 12_345, 999_999, 41_234_567_890].map(size_words);
        assert_eq!(words, ["0 bytes", "999 bytes", "1.0 kB", "12.3 kB", "999.9 kB", "41.2 GB"]);
        assert_eq!(size_words(u64::MAX), "18446744.0 TB");
    }

    #[test]
    fn a_digest_is_written_in_hexadecimal() {
        assert_eq!(hex_of(&[0, 10, 255]), "000aff");
    }
}
