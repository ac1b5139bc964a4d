//! Runs attempts for the driver: begins them, adopts those of an earlier process, ends them, and
//! removes what is left of them. Decides nothing: [`crate::protocol`] does.

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;
use towpath_engine::{event::FailureCause, ids::AttemptId};

use crate::{
    Adopted, AttemptsDir, Ended, FoundAttempt, adopt,
    attempt::{Event, Job},
    execute::execute_or_lose,
    own_disk::OwnDisk,
    protocol::Part,
    spool::{Spool, SpoolError, outcome, read_part},
    telemetry::executed,
    workspace::{PrepareError, Prepared, Workspaces},
};

/// Chunks of one job that may wait for the disk.
const CHUNKS: usize = 16;
/// Events that may wait for the driver. A task with one more waits, and its script waits with it.
const EVENTS_MAX: usize = 256;

/// An attempt that was begun or adopted, and is not forgotten.
#[derive(Debug)]
struct Live {
    cancel: CancellationToken,
    spool: Arc<Spool>,
}

/// The attempts of this machine.
#[derive(Debug)]
pub(crate) struct Runner {
    attempts: Arc<AttemptsDir>,
    workspaces: Arc<Workspaces>,
    live: HashMap<AttemptId, Live>,
    /// What an earlier process left, until it is adopted.
    found: HashMap<AttemptId, FoundAttempt>,
    /// One for each attempt that runs. Without them the scripts continue, and can be adopted again.
    tasks: JoinSet<()>,
    events: mpsc::Sender<Event>,
}

impl Runner {
    /// A runner, and what happens to its attempts.
    pub(crate) fn new(
        attempts: AttemptsDir,
        workspaces: Workspaces,
    ) -> (Self, mpsc::Receiver<Event>) {
        let (events, happened) = mpsc::channel(EVENTS_MAX);
        let found = attempts.found().into_iter().map(|found| (id_of(&found), found));
        let runner = Self {
            found: found.collect(),
            attempts: Arc::new(attempts),
            workspaces: Arc::new(workspaces),
            live: HashMap::new(),
            tasks: JoinSet::new(),
            events,
        };
        (runner, happened)
    }

    /// What an earlier process left.
    pub(crate) fn found(&self) -> impl Iterator<Item = AttemptId> + '_ {
        self.found.keys().cloned()
    }

    /// Where the attempts lie.
    pub(crate) fn attempts(&self) -> &Arc<AttemptsDir> {
        &self.attempts
    }

    /// The disk that the attempts' own files are on.
    pub(crate) fn disk(&self) -> &Arc<OwnDisk> {
        self.attempts.disk()
    }

    fn add(&mut self, attempt: &AttemptId) -> (Arc<Spool>, CancellationToken) {
        // Tasks that have ended are let go here: there is one for each job that ever ran.
        while self.tasks.try_join_next().is_some() {}
        let cancel = CancellationToken::new();
        let spool = Arc::new(Spool::new(&self.attempts, attempt.clone(), self.events.clone()));
        let live = Live { cancel: cancel.clone(), spool: Arc::clone(&spool) };
        self.live.insert(attempt.clone(), live);
        (spool, cancel)
    }

    /// Runs what the server assigned.
    pub(crate) fn begin(&mut self, attempt: AttemptId, job: Job) {
        let (spool, cancel) = self.add(&attempt);
        let (attempts, workspaces) = (Arc::clone(&self.attempts), Arc::clone(&self.workspaces));
        let events = self.events.clone();
        let Job { mut script, needed } = job;
        self.tasks.spawn(async move {
            if let Some(needed) = needed {
                let root = attempts.work(&script.run, &script.job, script.attempt);
                match workspaces.prepare(&attempt, needed, root, &cancel).await {
                    Ok(Prepared { root, folder }) => {
                        script.root = Some(root);
                        script.folder = folder;
                    }
                    Err(error) => {
                        let ended = not_begun(error, attempts.disk());
                        return send_ended(&events, attempt, ended, Ok(())).await;
                    }
                }
            }
            let (lines, chunks) = mpsc::channel(CHUNKS);
            let began = SystemTime::now();
            let executed_script = execute_or_lose(&attempts, &script, lines, cancel);
            let (ended, kept) = tokio::join!(executed_script, spool.keep(chunks));
            executed(&attempt, script.traceparent.as_deref(), began, &ended);
            send_ended(&events, attempt, ended, kept).await;
        });
    }

    /// Continues what an earlier process began, of whose output the server has `output_bytes`.
    pub(crate) fn adopt(&mut self, attempt: AttemptId, output_bytes: u64) {
        let Some(found) = self.found.remove(&attempt) else { return };
        let (spool, cancel) = self.add(&attempt);
        let (attempts, events) = (Arc::clone(&self.attempts), self.events.clone());
        self.tasks.spawn(async move {
            spool.resume(output_bytes).await;
            let (lines, chunks) = mpsc::channel(CHUNKS);
            let adopted = adopt(&attempts, &found, lines, cancel);
            let (ended, kept) = tokio::join!(adopted, spool.keep(chunks));
            let began = UNIX_EPOCH + Duration::from_millis(found.began_unix_ms);
            executed(&attempt, found.traceparent.as_deref(), began, &ended);
            send_ended(&events, attempt, ended, kept).await;
        });
    }

    /// Ends what runs of an attempt.
    pub(crate) fn cancel(&self, attempt: &AttemptId) {
        if let Some(live) = self.live.get(attempt) {
            live.cancel.cancel();
        }
    }

    /// Removes an attempt from this machine. `false`: its folder is still being removed, and an
    /// event follows when it is removed.
    pub(crate) fn forget(&mut self, attempt: AttemptId, failed: bool) -> bool {
        let AttemptId { run, job, attempt: number } = &attempt;
        self.attempts.forget(run, job, *number);
        self.live.remove(&attempt);
        let work = self.attempts.work(run, job, *number);
        if !work.exists() {
            return true;
        }
        // What cannot be kept is cleared away.
        if failed && self.workspaces.keep_work && self.attempts.keep_work(&work).is_ok() {
            return true;
        }
        let events = self.events.clone();
        self.tasks.spawn(async move {
            clear(work).await;
            drop(events.send(Event::Cleared { attempt }).await);
        });
        false
    }

    /// What reads part of an attempt. It waits for a disk, so it is not for the thread of the driver,
    /// which sends the heartbeats.
    pub(crate) fn reader(
        &self,
        attempt: &AttemptId,
        part: &Part,
    ) -> impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static {
        let spool = self.live.get(attempt).map(|live| Arc::clone(&live.spool));
        let part = part.clone();
        move || match part {
            Part::Output { offset, length } => {
                let spool = spool.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                spool.read(offset, length)
            }
            Part::Artifact { file, offset, length } => read_part(&file.absolute, offset, length),
        }
    }

    /// Lets go of everything. What runs continues, and the next process adopts it.
    pub(crate) async fn release(&mut self) {
        self.tasks.shutdown().await;
    }
}

async fn send_ended(
    events: &mpsc::Sender<Event>,
    attempt: AttemptId,
    ended: Adopted,
    kept: Result<(), SpoolError>,
) {
    let (outcome, incomplete) = outcome(ended, kept);
    // A worker that stops takes no events; the next process finds the attempt.
    drop(events.send(Event::Ended { attempt, outcome, incomplete }).await);
}

/// Removes the folder of an attempt that is over. A leftover goes at the next start.
async fn clear(work: PathBuf) {
    drop(spawn_blocking(move || fs::remove_dir_all(work)).await);
}

/// How an attempt ends whose folder was not made.
fn not_begun(error: PrepareError, disk: &OwnDisk) -> Adopted {
    match error {
        PrepareError::Cancelled => Adopted::Ended(Ended::Cancelled { ran_ms: 0 }),
        PrepareError::Because(why) if disk.is_to_blame(&why) => {
            disk.note(&why);
            Adopted::Lost(format!("its worker cannot write its own files: {why}"))
        }
        PrepareError::Because(why) => {
            Adopted::Ended(Ended::Failed { cause: FailureCause::NotStarted(why), ran_ms: 0 })
        }
    }
}

fn id_of(found: &FoundAttempt) -> AttemptId {
    AttemptId { run: found.run.clone(), job: found.job.clone(), attempt: found.attempt }
}
