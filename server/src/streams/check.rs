//! One kind of streams for `tow doctor`: every view of them is rebuilt from the log alone and
//! compared with what the server shows.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use towpath_engine::{
    aggregate::{Aggregate, id_of},
    codec,
    views::List,
};
use towpath_storage::{Position, Record, Version};

use super::{StreamHooks, Streams, load};
use crate::{
    command_error::CommandError,
    open_log::{Checked, StreamCheck, StreamKind},
    sync::locked,
};

/// What the log alone says.
struct Rebuilt<A: Aggregate, H> {
    streams: Arc<Streams<A, H>>,
    list: List<A>,
    /// Streams of which more records are to come.
    states: HashMap<A::Id, (Version, A)>,
    /// Streams of which all records were shown.
    complete: Vec<(A::Id, Version, A)>,
    /// Those that were complete. What is appended to them meanwhile is left to the next check.
    compared: HashSet<A::Id>,
    /// Streams that cannot be replayed, at which version, and why.
    damaged: BTreeMap<A::Id, (Version, String)>,
}

impl<A: Aggregate, H: StreamHooks<A>> StreamKind for Streams<A, H> {
    fn kind(&self) -> &'static str {
        A::KIND
    }

    fn pass(&self, first: Position, last: Position) {
        locked(&self.list).pass(first, last);
    }

    fn begin_check(self: Arc<Self>) -> Box<dyn StreamCheck> {
        Box::new(Rebuilt::of(self))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.write_snapshots())
    }
}

impl<A: Aggregate, H: StreamHooks<A>> StreamCheck for Rebuilt<A, H> {
    fn take(&mut self, record: &Record) {
        self.list.read(&record.stream, record.position, record.version, &record.bytes);
        let Some(id) = id_of::<A>(&record.stream) else { return };
        if self.damaged.contains_key(&id) || self.compared.contains(&id) {
            return;
        }
        let (version, state) = self.states.entry(id.clone()).or_default();
        *version = record.version;
        let evolved = codec::decode(&record.bytes)
            .map_err(|error| error.to_string())
            .and_then(|fact| state.evolve(&fact).map_err(|error| error.to_string()));
        if let Err(why) = evolved {
            // The other streams are checked all the same.
            self.states.remove(&id);
            self.damaged.insert(id, (record.version, why));
            return;
        }
        // The list of the server says which record is the last. Where it is wrong the stream is
        // compared at the end, and so is the list itself.
        let newest = locked(&self.streams.list).get(&id).map(|listed| listed.version);
        if newest == Some(record.version)
            && let Some((version, state)) = self.states.remove(&id)
        {
            self.compared.insert(id.clone());
            self.complete.push((id, version, state));
        }
    }

    fn settle(&mut self) -> BoxFuture<'_, Result<Checked, CommandError>> {
        Box::pin(self.compare_complete())
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, Result<Checked, CommandError>> {
        Box::pin(async move {
            let rest = std::mem::take(&mut self.states).into_iter();
            self.complete.extend(rest.map(|(id, (version, state))| (id, version, state)));
            let mut checked = self.compare_complete().await?;
            self.compare_list(&mut checked.findings);
            Ok(checked)
        })
    }
}

impl<A: Aggregate, H: StreamHooks<A>> Rebuilt<A, H> {
    fn of(streams: Arc<Streams<A, H>>) -> Self {
        Self {
            streams,
            list: List::default(),
            states: HashMap::new(),
            complete: Vec::new(),
            compared: HashSet::new(),
            damaged: BTreeMap::new(),
        }
    }

    async fn compare_complete(&mut self) -> Result<Checked, CommandError> {
        let (kind, mut checked) = (A::KIND, Checked::default());
        for (id, version, state) in std::mem::take(&mut self.complete) {
            checked.streams += 1;
            self.compare(&id, version, &state, &mut checked.findings).await?;
            let listed = self.list.get(&id).filter(|listed| listed.version == version);
            let is_same = listed.is_none_or(|it| Some(&it.summary) == state.summary().as_ref());
            if !is_same {
                let finding = format!("the list shows {kind} {id} otherwise than its events do");
                checked.findings.push(finding);
            }
            let blobs = state.blobs().into_iter();
            checked.blobs.extend(blobs.map(|(what, blob)| (format!("{kind} {id}, {what}"), blob)));
        }
        Ok(checked)
    }

    fn compare_list(&self, findings: &mut Vec<String>) {
        let kind = A::KIND;
        let kept = locked(&self.streams.list).clone();
        if kept.position() == self.list.position() && kept != self.list {
            findings.push(format!("the list of {kind}s differs from the log"));
        }
        for (id, (version, why)) in &self.damaged {
            findings.push(format!("{kind} {id} cannot be replayed at version {version}: {why}"));
        }
    }

    /// A state in memory, and one from its snapshot, must be the one that the log tells.
    async fn compare(
        &self,
        id: &A::Id,
        version: Version,
        rebuilt: &A,
        findings: &mut Vec<String>,
    ) -> Result<(), CommandError> {
        let kind = A::KIND;
        let loaded = self.streams.lock_latest(id).await?;
        if loaded.version == version && loaded.state != *rebuilt {
            findings.push(format!("{kind} {id} in memory differs from the log"));
        }
        drop(loaded);
        let log = &self.streams.log;
        let shortcut = load::stream::<A>(&*log.store, &log.snapshots, id).await?;
        let same_version = shortcut.snapshot_version > 0 && shortcut.version == version;
        if same_version && shortcut.state != *rebuilt {
            findings.push(format!("the snapshot of {kind} {id} differs from the log"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use towpath_storage::EventStore as _;

    use super::*;
    use crate::testing::{Fixture, job, success};

    #[tokio::test]
    async fn a_check_holds_no_run_that_it_has_compared() {
        let fixture = Fixture::new();
        for id in ["a", "b", "c"] {
            let run = fixture.begins(id, vec![job("x", &[])]).await;
            fixture.queues(&run, success("x")).await.done.await.unwrap();
        }
        let records = fixture.store.read_all(0, 1_000).await.unwrap();
        let (mut rebuilt, mut streams) = (Rebuilt::of(Arc::clone(&fixture.runs)), 0);
        for record in &records {
            rebuilt.take(record);
            let checked = rebuilt.settle().await.unwrap();
            assert_eq!(checked.findings, [""; 0]);
            streams += checked.streams;
            assert!(rebuilt.states.len() <= 1, "one run after the other");
        }
        let rest = Box::new(rebuilt).finish().await.unwrap();
        assert_eq!((streams, rest.streams, rest.findings), (3, 0, Vec::new()));
    }
}
