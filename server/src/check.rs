//! `tow doctor`: the whole log is walked, every view is rebuilt from it, and the two are compared.

use std::collections::{BTreeMap, HashMap};

use tokio::sync::mpsc;
use tonic::Status;
use towpath_engine::{
    codec,
    ids::{Digest, RunId},
    run::Run,
    source::{Origin, Source},
};
use towpath_proto::v1;
use towpath_storage::verify;

use crate::{
    Server, load,
    run_list::RunList,
    runs::{CommandError, locked},
    status, wire,
};

/// Records between two signs of life.
const REPORT_EVERY: u64 = 20_000;

/// Checks everything and says what it found.
pub(crate) async fn check(server: &Server, send: mpsc::Sender<Result<v1::CheckResponse, Status>>) {
    match check_all(server, &send).await {
        Ok(done) => drop(send.send(Ok(done)).await),
        Err(error) => drop(send.send(Err(status::of(error))).await),
    }
}

async fn check_all(
    server: &Server,
    send: &mpsc::Sender<Result<v1::CheckResponse, Status>>,
) -> Result<v1::CheckResponse, CommandError> {
    let store = &server.runs().store;
    let verified = verify(&**store, |position| {
        if position % REPORT_EVERY == 0 {
            let progress = v1::CheckResponse { records: position, ..Default::default() };
            drop(send.try_send(Ok(progress)));
        }
    })
    .await?;
    let mut findings = Vec::new();
    let Replayed { list, runs: rebuilt, versions, damaged } = rebuild(server).await?;
    let kept = locked(&server.runs().list).clone();
    if kept.position() == list.position() && kept != list {
        findings.push("the list of runs differs from the log".to_owned());
    }
    for (id, (version, why)) in &damaged {
        findings.push(format!("run {id} cannot be replayed at version {version}: {why}"));
    }
    for (id, run) in &rebuilt {
        compare(server, id, run, versions[id], &mut findings).await?;
        if !is_listed_right(&list, id, run) {
            findings.push(format!("the list shows run {id} otherwise than its events do"));
        }
    }
    check_blobs(server, &rebuilt, &mut findings);
    Ok(v1::CheckResponse {
        records: verified.records,
        runs: rebuilt.len() as u64,
        done: true,
        findings,
        log_hash: Digest(verified.hash).to_string(),
    })
}

type Rebuilt = HashMap<RunId, Run>;

/// What the log alone says.
#[derive(Default)]
struct Replayed {
    list: RunList,
    runs: Rebuilt,
    versions: HashMap<RunId, u64>,
    /// Runs that cannot be replayed, at which version, and why.
    damaged: BTreeMap<RunId, (u64, String)>,
}

async fn rebuild(server: &Server) -> Result<Replayed, CommandError> {
    let mut all = Replayed::default();
    loop {
        let page = server.runs().store.read_all(all.list.position(), 4_096).await?;
        if page.is_empty() {
            return Ok(all);
        }
        for record in page {
            all.list.read(&record);
            let Some(id) = record.stream.strip_prefix("run/").map(RunId::from) else { continue };
            if all.damaged.contains_key(&id) {
                continue;
            }
            let run = all.runs.entry(id.clone()).or_default();
            let evolved = codec::decode(&record.bytes)
                .map_err(|error| error.to_string())
                .and_then(|fact| run.evolve(&fact).map_err(|error| error.to_string()));
            if let Err(why) = evolved {
                // The other runs are checked all the same.
                all.runs.remove(&id);
                all.damaged.insert(id, (record.version, why));
            } else {
                all.versions.insert(id, record.version);
            }
        }
    }
}

/// What a list shows of a run that has ended is folded from fewer events than the run itself.
fn is_listed_right(list: &RunList, id: &RunId, rebuilt: &Run) -> bool {
    let Some(listed) = list.get(id) else { return false };
    let shown = wire::summary(listed, "");
    shown.is_none_or(|shown| shown == wire::run(rebuilt, listed.version, listed.position, ""))
}

/// A run in memory, and a run from its snapshot, must be the run that the log tells.
async fn compare(
    server: &Server,
    id: &RunId,
    rebuilt: &Run,
    version: u64,
    findings: &mut Vec<String>,
) -> Result<(), CommandError> {
    let loaded = server.runs().lock_latest(id).await?;
    if loaded.version == version && loaded.run != *rebuilt {
        findings.push(format!("run {id} in memory differs from the log"));
    }
    drop(loaded);
    let shortcut = load::run(&*server.runs().store, &server.runs().snapshots, id).await?;
    if shortcut.snapshot_version > 0 && shortcut.version == version && shortcut.run != *rebuilt {
        findings.push(format!("the snapshot of run {id} differs from the log"));
    }
    Ok(())
}

/// Every blob that an event names must be there, with the bytes that were meant.
fn check_blobs(server: &Server, rebuilt: &Rebuilt, findings: &mut Vec<String>) {
    for (id, run) in rebuilt {
        let source = run.header().and_then(|header| header.source.as_ref());
        if let Some(Source { origin: Origin::Bundle(bundle), .. }) = source
            && let Err(error) = server.outputs().blobs.verify(&bundle.sha256.0)
        {
            findings.push(format!("run {id}, its bundle: {error}"));
        }
        for job in run.jobs() {
            let files = job.artifacts.iter().map(|artifact| artifact.blob);
            for blob in job.captured_output.into_iter().chain(files) {
                if let Err(error) = server.outputs().blobs.verify(&blob.sha256.0) {
                    findings.push(format!("run {id}, job `{}`: {error}", job.plan.name));
                }
            }
        }
    }
}
