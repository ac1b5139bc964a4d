//! The jobs of a worker: begun, taken up again, told about, ended and forgotten, through any number
//! of sessions.

use std::{
    collections::HashMap,
    fs,
    future::pending,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use towpath_engine::{
    event::FailureCause,
    ids::{JobName, RunId},
};
use towpath_proto::{time::duration_ms, v1};

use crate::{
    Adopted, AttemptsDir, Ended, FoundAttempt, Script, adopt,
    execute::execute_or_lose,
    held::{AttemptKey, HeldAttempt, attempt_message, key},
    own_disk::OwnDisk,
    telemetry::executed,
    tell::tell,
    workspace::{Needed, PrepareError, Prepared, Workspaces},
};

/// Chunks of one job that may wait for the disk.
const CHUNKS: usize = 16;

type Send = mpsc::Sender<v1::SessionRequest>;

/// What a worker holds, and who watches over it.
pub(crate) struct Jobs {
    attempts: Arc<AttemptsDir>,
    workspaces: Arc<Workspaces>,
    held: HashMap<AttemptKey, Arc<HeldAttempt>>,
    /// What an earlier process left, until a server says what of it counts.
    found: Vec<FoundAttempt>,
    /// Attempts that count no more and are being ended: nothing of their job begins before.
    void: HashMap<(RunId, JobName), CancellationToken>,
    /// Those who watch over the jobs. Without them the jobs go on, and can be taken up again.
    watching: JoinSet<()>,
    /// Those who tell the server of this session.
    telling: JoinSet<()>,
    kill: CancellationToken,
    begun: u32,
    last: Option<Adopted>,
}

impl Jobs {
    pub(crate) fn new(
        attempts: AttemptsDir,
        workspaces: Workspaces,
        kill: CancellationToken,
    ) -> Self {
        Self {
            found: attempts.found(),
            attempts: Arc::new(attempts),
            workspaces: Arc::new(workspaces),
            held: HashMap::new(),
            void: HashMap::new(),
            watching: JoinSet::new(),
            telling: JoinSet::new(),
            kill,
            begun: 0,
            last: None,
        }
    }

    /// How many assignments were taken.
    pub(crate) fn begun(&self) -> u32 {
        self.begun
    }

    /// What became of the attempt that was recorded last.
    pub(crate) fn last(&self) -> Option<&Adopted> {
        self.last.as_ref()
    }

    /// Whether nothing is held, and nothing is being ended or cleared away.
    pub(crate) fn is_empty(&self) -> bool {
        let held = !self.held.is_empty() || !self.found.is_empty();
        !held && self.void.is_empty() && self.watching.is_empty()
    }

    /// The disk that the attempts' own files are on.
    pub(crate) fn disk(&self) -> &Arc<OwnDisk> {
        self.attempts.disk()
    }

    /// How many attempts are held, if none of them runs any more.
    pub(crate) fn unreported(&self) -> Option<usize> {
        let over = self.void.is_empty() && self.held.values().all(|attempt| attempt.has_ended());
        over.then(|| self.held.len() + self.found.len())
    }

    /// Everything that runs, or has ended and is not known to be recorded.
    pub(crate) fn held_attempts(&self) -> Vec<v1::AttemptId> {
        let found = self.found.iter().map(|found| attempt_message(&key_of(found)));
        self.held.keys().map(attempt_message).chain(found).collect()
    }

    /// Goes on with what still counts, tells it to the server from where that is, and ends the
    /// rest. Answers how many count.
    pub(crate) fn take_up(&mut self, held: Vec<v1::HeldAttempt>, send: &Send) -> usize {
        let counts: HashMap<AttemptKey, u64> = held
            .into_iter()
            .filter_map(|held| Some((key(held.attempt?), held.output_bytes)))
            .collect();
        for found in std::mem::take(&mut self.found) {
            let attempt = self.hold(key_of(&found));
            if let Some(output_bytes) = counts.get(&attempt.key) {
                attempt.begin_at(*output_bytes);
            }
            let attempts = Arc::clone(&self.attempts);
            self.watching.spawn(async move {
                let (lines, chunks) = mpsc::channel(CHUNKS);
                let cancel = attempt.cancel.clone();
                let (adopted, kept) =
                    tokio::join!(adopt(&attempts, &found, lines, cancel), attempt.keep(chunks));
                let began = UNIX_EPOCH + Duration::from_millis(found.began_unix_ms);
                executed(&attempt.key, found.traceparent.as_deref(), began, &adopted);
                attempt.end(adopted, kept);
            });
        }
        let void: Vec<AttemptKey> =
            self.held.keys().filter(|key| !counts.contains_key(key)).cloned().collect();
        for key in void {
            self.end_void(&key);
        }
        for (key, attempt) in &self.held {
            let from = counts.get(key).copied().unwrap_or_default();
            self.telling.spawn(tell(Arc::clone(attempt), from, send.clone()));
        }
        self.held.len()
    }

    fn hold(&mut self, key: AttemptKey) -> Arc<HeldAttempt> {
        let cancel = self.kill.child_token();
        let attempt = Arc::new(HeldAttempt::new(&self.attempts, key.clone(), cancel));
        self.held.insert(key, Arc::clone(&attempt));
        attempt
    }

    /// Ends an attempt that counts no more, so that nothing of it runs beside its successor.
    fn end_void(&mut self, key: &AttemptKey) {
        let Some(attempt) = self.held.remove(key) else { return };
        attempt.cancel.cancel();
        let gone = CancellationToken::new();
        let before = self.void.insert((key.0.clone(), key.1.clone()), gone.clone());
        let attempts = Arc::clone(&self.attempts);
        self.watching.spawn(async move {
            if let Some(before) = before {
                before.cancelled().await;
            }
            ended(&attempt).await;
            let (run, job, number) = &attempt.key;
            attempts.forget(run, job, *number);
            clear(attempts.work(run, job, *number)).await;
            gone.cancel();
        });
    }

    /// Begins what the server assigned.
    pub(crate) fn begin(&mut self, assignment: v1::Assignment, send: &Send) {
        let Some((mut script, needed)) = script_of(assignment) else { return };
        let key = (script.run.clone(), script.job.clone(), script.attempt);
        if self.held.contains_key(&key) {
            // It is held already. To hold it a second time would lose the way to end the first.
            return;
        }
        let past = self.void.get(&(key.0.clone(), key.1.clone())).cloned();
        let attempt = self.hold(key);
        self.begun += 1;
        self.telling.spawn(tell(Arc::clone(&attempt), 0, send.clone()));
        let (attempts, workspaces) = (Arc::clone(&self.attempts), Arc::clone(&self.workspaces));
        self.watching.spawn(async move {
            if let Some(past) = past {
                // A job never runs beside its own past.
                past.cancelled().await;
            }
            if let Some(needed) = needed {
                let root = attempts.work(&script.run, &script.job, script.attempt);
                match workspaces.prepare(&attempt.key, needed, root, &attempt.cancel).await {
                    Ok(Prepared { root, folder }) => {
                        script.root = Some(root);
                        script.folder = folder;
                    }
                    Err(unprepared) => {
                        return attempt.end(not_begun(unprepared, attempts.disk()), Ok(()));
                    }
                }
            }
            let (lines, chunks) = mpsc::channel(CHUNKS);
            let (cancel, began) = (attempt.cancel.clone(), SystemTime::now());
            let executed_script = execute_or_lose(&attempts, &script, lines, cancel);
            let (ended, kept) = tokio::join!(executed_script, attempt.keep(chunks));
            executed(&attempt.key, script.traceparent.as_deref(), began, &ended);
            attempt.end(ended, kept);
        });
    }

    /// Ends an attempt because its run is ending.
    pub(crate) fn cancel(&self, of: Option<v1::AttemptId>) {
        if let Some(attempt) = of.and_then(|of| self.held.get(&key(of))) {
            attempt.cancel.cancel();
        }
    }

    /// Lets go of an attempt whose end is recorded.
    pub(crate) fn forget(&mut self, of: v1::AttemptId) {
        let key = key(of);
        self.attempts.forget(&key.0, &key.1, key.2);
        let attempt = self.held.remove(&key);
        let failed = attempt.as_ref().is_some_and(|attempt| attempt.has_failed());
        let ended = attempt.and_then(|attempt| {
            let progress = attempt.progress().borrow().clone();
            progress.ended.map(|(ended, _)| ended)
        });
        self.last = ended.or(self.last.take());
        let work = self.attempts.work(&key.0, &key.1, key.2);
        if !work.exists() {
            return;
        }
        // What cannot be kept is cleared away.
        if !(failed && self.workspaces.keep_work && self.attempts.keep_work(&work).is_ok()) {
            self.watching.spawn(clear(work));
        }
    }

    /// Waits until somebody who watches has nothing more to do; for ever, if nobody watches.
    pub(crate) async fn watched(&mut self) {
        if self.watching.join_next().await.is_none() {
            pending::<()>().await;
        }
        while self.telling.try_join_next().is_some() {}
        self.void.retain(|_, gone| !gone.is_cancelled());
    }

    /// Stops telling: there is nobody to be told.
    pub(crate) async fn fall_silent(&mut self) {
        self.telling.shutdown().await;
    }

    /// Ends everything that is held, because none of it counts any more.
    pub(crate) async fn end_all(&mut self) {
        let all: Vec<AttemptKey> = self.held.keys().cloned().collect();
        for key in all {
            self.end_void(&key);
        }
        while self.watching.join_next().await.is_some() {}
    }

    /// Stops watching. What runs goes on.
    pub(crate) async fn let_go(&mut self) {
        self.fall_silent().await;
        self.watching.shutdown().await;
    }
}

/// Waits for the end of an attempt.
async fn ended(attempt: &HeldAttempt) {
    let mut progress = attempt.progress();
    drop(progress.wait_for(|progress| progress.ended.is_some()).await);
}

/// Removes the folder of an attempt that is over. A leftover goes at the next start.
async fn clear(work: PathBuf) {
    drop(tokio::task::spawn_blocking(move || fs::remove_dir_all(work)).await);
}

/// How an attempt ends whose folder was not made.
fn not_begun(unprepared: PrepareError, disk: &OwnDisk) -> Adopted {
    match unprepared {
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

fn key_of(found: &FoundAttempt) -> AttemptKey {
    (found.run.clone(), found.job.clone(), found.attempt)
}

fn script_of(assignment: v1::Assignment) -> Option<(Script, Option<Needed>)> {
    let v1::Assignment {
        attempt: of,
        fence,
        script,
        shell,
        env,
        secrets,
        folder,
        timeout,
        grace,
        artifacts,
        traceparent,
        stage: _,
        source,
        files,
        files_left_out: left_out,
    } = assignment;
    let (run, job, attempt) = key(of?);
    let needed = source.map(|source| Needed { source, files, left_out });
    let script = Script {
        run,
        job,
        attempt,
        fence,
        script,
        shell,
        env,
        secrets,
        folder: folder.into(),
        root: None,
        timeout: timeout.as_ref().and_then(duration_ms).map(Duration::from_millis),
        grace: grace.as_ref().and_then(duration_ms).map(Duration::from_millis),
        artifacts,
        traceparent: (!traceparent.is_empty()).then_some(traceparent),
    };
    Some((script, needed))
}
