//! Removes what grew of attempts that are over: of lost ones, and of those whose end was recorded
//! by a server that was killed before it removed their files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use towpath_engine::ids::RunId;

use super::{Outputs, directory_name};
use crate::{runs::Runs, streams::Loaded};

/// How often it is looked. The first look is at the start.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Most directories that one sweep checks; the rest waits for the next.
const SWEPT_MAX: usize = 10_000;

/// Sweeps until the server stops.
pub(crate) async fn sweep_always(outputs: Arc<Outputs>, runs: Arc<Runs>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sweep(&outputs, &runs) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
    }
}

/// Removes the directories of all attempts without a lease.
pub(crate) async fn sweep(outputs: &Arc<Outputs>, runs: &Arc<Runs>) {
    // RunListEntry before it is asked who holds what. What an attempt that is leased meanwhile
    // makes is then not in the list, and what is in the list and not held never will be again.
    let spool = outputs.spool.clone();
    let listed = tokio::task::spawn_blocking(move || list(&spool)).await;
    let Ok(Ok(listed)) = listed else { return };
    for (name, directories) in listed {
        let run = RunId::from(name.as_str());
        let live = runs.is_live(&run);
        let held = match live {
            false => BTreeSet::new(),
            true => match runs.read_durable(&run, held).await {
                Ok(held) => held,
                // A run that cannot be read now keeps what it has.
                Err(_) => continue,
            },
        };
        let over: Vec<PathBuf> = directories
            .into_iter()
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                !held.contains(name)
            })
            .collect();
        let of_run = (!live).then(|| outputs.spool.join(&name));
        drop(tokio::task::spawn_blocking(move || remove(&over, of_run.as_deref())).await);
    }
}

/// The directories of the attempts of a run that are held.
fn held(loaded: &Loaded) -> BTreeSet<String> {
    let leased = loaded.state.leased();
    leased.map(|job| directory_name(&job.plan.name, job.attempt)).collect()
}

/// What is in the spool, by run.
fn list(spool: &Path) -> io::Result<BTreeMap<String, Vec<PathBuf>>> {
    let (mut listed, mut count) = (BTreeMap::new(), 0);
    for run in fs::read_dir(spool)? {
        let run = run?;
        let Ok(name) = run.file_name().into_string() else { continue };
        let mut directories = Vec::new();
        // What is no directory was not made here.
        let Ok(entries) = fs::read_dir(run.path()) else { continue };
        directories.extend(entries.flatten().take(SWEPT_MAX - count).map(|entry| entry.path()));
        count += directories.len() + 1;
        listed.insert(name, directories);
        if count >= SWEPT_MAX {
            break;
        }
    }
    Ok(listed)
}

fn remove(over: &[PathBuf], of_run: Option<&Path>) {
    for path in over {
        // Version 0.1 kept files where directories are now.
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "leftover output not removed");
        }
    }
    if let Some(of_run) = of_run {
        // Fails if something has begun there, and must.
        drop(fs::remove_dir(of_run));
    }
}

#[cfg(test)]
mod tests {
    use towpath_engine::ids::Attempt;
    use towpath_storage::Blobs;

    use super::*;
    use crate::{
        outputs::Key,
        testing::{Fixture, job, success},
    };

    #[tokio::test]
    async fn only_what_an_attempt_that_is_held_has_growing_stays() {
        let fixture = Fixture::new();
        let run = fixture.begins("r", vec![job("a", &[]), job("b", &[]), job("c", &["b"])]).await;
        let folder = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(&folder.path().join("blobs")).unwrap());
        let spool = folder.path().join("spool");
        let outputs = Arc::new(Outputs::new(spool.clone(), blobs));
        let key = |job: &str, attempt| Key {
            run: run.clone(),
            job: job.into(),
            attempt: Attempt(attempt),
        };
        for key in [key("a", 1), key("a", 2), key("b", 1), key("c", 1)] {
            outputs.write(&key, 0, b"1 o x\n").unwrap();
        }
        outputs.write(&Key { run: "ended".into(), ..key("a", 1) }, 0, b"1 o x\n").unwrap();
        fs::write(spool.join("r").join("of-version-0.1"), "x").unwrap();
        fixture.queues(&run, success("a")).await.done.await.unwrap();

        sweep(&outputs, &fixture.runs).await;

        let left = list(&spool).unwrap();
        let held = outputs.directory(&key("b", 1));
        assert_eq!(left, BTreeMap::from([("r".to_owned(), vec![held])]));
    }
}
