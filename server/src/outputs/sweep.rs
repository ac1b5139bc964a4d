//! Removes what grew of attempts that are over: of lost ones, and of those whose end was recorded
//! by a server that was killed before it removed their files.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
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
    let mut place = Place::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sweep(&outputs, &runs, &mut place) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
    }
}

/// Where a sweep ended: after this attempt of this run, by name. Empty: at the end of all.
type Place = (String, OsString);

/// Removes the directories of all attempts without a lease, as many as one sweep checks after
/// `place`.
pub(crate) async fn sweep(outputs: &Arc<Outputs>, runs: &Arc<Runs>, place: &mut Place) {
    // RunListEntry before it is asked who holds what. What an attempt that is leased meanwhile
    // makes is then not in the list, and what is in the list and not held never will be again.
    let (spool, after) = (outputs.spool.clone(), place.clone());
    let listed = tokio::task::spawn_blocking(move || list(&spool, &after, SWEPT_MAX)).await;
    let Ok(Ok((listed, next))) = listed else { return };
    *place = next;
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

/// What is in the spool, by run: at most `most` directories of those after `after`, in the order of
/// their names, and where the next sweep begins. Those that stay, because they are held or cannot be
/// removed, must not keep the rest from being checked for ever.
fn list(
    spool: &Path,
    after: &Place,
    most: usize,
) -> io::Result<(BTreeMap<String, Vec<PathBuf>>, Place)> {
    let names = |path: &Path| -> io::Result<Vec<OsString>> {
        let mut names: Vec<_> =
            fs::read_dir(path)?.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        Ok(names)
    };
    let (mut listed, mut count) = (BTreeMap::new(), 0);
    for run in names(spool)? {
        let Ok(run) = run.into_string() else { continue };
        if run < after.0 {
            continue;
        }
        // What is no directory was not made here.
        let Ok(mut attempts) = names(&spool.join(&run)) else { continue };
        attempts.retain(|attempt| run != after.0 || *attempt > after.1);
        let fitting = attempts.get(..most - count).unwrap_or(&attempts);
        let paths = fitting.iter().map(|attempt| spool.join(&run).join(attempt)).collect();
        let last = fitting.last().cloned().unwrap_or_default();
        listed.insert(run.clone(), paths);
        // A run without any counts too: it costs a look at its directory.
        count += fitting.len() + 1;
        if count >= most {
            return Ok((listed, (run, last)));
        }
    }
    Ok((listed, Place::default()))
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

        sweep(&outputs, &fixture.runs, &mut Place::default()).await;

        let (left, _) = list(&spool, &Place::default(), SWEPT_MAX).unwrap();
        let held = outputs.directory(&key("b", 1));
        assert_eq!(left, BTreeMap::from([("r".to_owned(), vec![held])]));
    }

    #[test]
    fn directories_that_stay_keep_no_other_from_being_checked() {
        let spool = tempfile::tempdir().unwrap();
        for attempt in ["r1/a", "r1/b", "r1/c", "r2/a", "r3/a", "r3/b"] {
            fs::create_dir_all(spool.path().join(attempt)).unwrap();
        }
        let (mut place, mut seen, mut sweeps) = (Place::default(), BTreeSet::new(), 0);
        loop {
            let (listed, next) = list(spool.path(), &place, 3).unwrap();
            assert!(listed.values().map(Vec::len).sum::<usize>() <= 3);
            seen.extend(listed.into_values().flatten());
            (place, sweeps) = (next, sweeps + 1);
            if place == Place::default() {
                break;
            }
        }
        assert_eq!((seen.len(), sweeps), (6, 4));
    }
}
