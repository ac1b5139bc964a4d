//! What a script left behind: outputs and artifacts, read, masked, and checked before they are
//! reported.
//!
//! The rules are those of the server, which cannot record anything else. Here they fail the job
//! with a cause that names the file; a server can only say that the report is wrong.

use std::{collections::BTreeMap, sync::Arc};

use towpath_engine::{codec::FACT_BYTES_MAX, results::success_bytes};

use crate::{artifacts, attempt::ArtifactFile, journal::JournalEntry, mask::Mask, outputs};

/// The outputs and artifacts of a script that succeeded; or why they cannot be used, masked.
pub(crate) async fn read(
    kept: &JournalEntry,
    mask: &Arc<Mask>,
    withheld: Option<String>,
) -> Result<(BTreeMap<String, String>, Vec<ArtifactFile>), String> {
    let read = outputs::read(&kept.output).map_err(|error| error.to_string())?;
    if let Some(why) = withheld.filter(|_| !read.is_empty()) {
        return Err(format!("the outputs cannot be masked: {why}"));
    }
    let mut outputs = BTreeMap::new();
    for (name, value) in read {
        if mask.text(&name) != name {
            return Err("the name of an output holds a secret".to_owned());
        }
        outputs.insert(name, mask.text(&value));
    }
    let mut artifacts = Vec::new();
    if !kept.artifacts.is_empty() {
        let (folder, patterns) = (kept.folder.clone(), kept.artifacts.clone());
        let found = tokio::task::spawn_blocking(move || artifacts::find(&folder, &patterns)).await;
        artifacts = found.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    }
    for ArtifactFile { path, .. } in &artifacts {
        let masked = mask.text(path);
        if masked != *path {
            // Later jobs find the file under its path, so the path cannot be changed.
            return Err(format!("the path of the artifact `{masked}` holds a secret"));
        }
    }
    match event_problem(kept, &outputs, &artifacts) {
        Some(why) => Err(why),
        None => Ok((outputs, artifacts)),
    }
}

/// Why the event of this result cannot be written. `None`: it can.
fn event_problem(
    kept: &JournalEntry,
    outputs: &BTreeMap<String, String>,
    artifacts: &[ArtifactFile],
) -> Option<String> {
    let sizes = artifacts.iter().map(|file| (file.path.as_str(), file.size));
    let bytes = match success_bytes((&kept.job, kept.attempt), outputs, sizes) {
        Ok(bytes) => bytes,
        Err(error) => return Some(error.to_string()),
    };
    (bytes > FACT_BYTES_MAX).then(|| {
        format!(
            "{} outputs and {} artifacts take {bytes} bytes, and an event holds {FACT_BYTES_MAX}; \
             write less to `$TOW_OUTPUT`, or pack the artifacts into one file",
            outputs.len(),
            artifacts.len()
        )
    })
}
