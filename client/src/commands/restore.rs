//! `tow restore`.

use std::{fs, path::PathBuf};

use towpath_server::{offline_backup, store_usages};

use super::{
    App, CommandResult,
    backup::{Progress, report, size_words},
};
use crate::{exit, failure::Failure};

/// Create a store from a backup
///
/// The whole file is verified first. The new store appears only when it is complete and its log
/// has the hash of the backup; a store that is there already is never touched.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// Where the store shall be.
    #[arg(long, value_name = "URL")]
    #[arg(help = format!("Where the store shall be, as {} [default: as `--store`]", store_usages(true)))]
    to: Option<String>,
}

/// Makes a store out of a file.
pub(crate) async fn restore(app: &App, args: RestoreArgs) -> CommandResult {
    let RestoreArgs { file, to } = args;
    // Whether it can be read at all is said in the words of the file, not of the store.
    fs::File::open(&file).map_err(|error| Failure::file(&file, &error))?;
    let url = to.unwrap_or_else(|| app.url());
    let mut progress = Progress::new(&app.style);
    let kept =
        offline_backup::restore(&file, &url, |bytes| progress.show(|| size_words(bytes))).await;
    progress.clear();
    report(app, &file, &url, "Restored", &kept?)?;
    Ok(exit::DONE)
}
