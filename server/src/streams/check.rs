//! One kind of streams for `tow doctor`: every view of them is rebuilt from the log alone and
//! compared with what the server shows.

use std::{
    collections::{BTreeMap, HashMap},
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
    states: HashMap<A::Id, (Version, A)>,
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
        let (list, states, damaged) = (List::default(), HashMap::new(), BTreeMap::new());
        Box::new(Rebuilt { streams: self, list, states, damaged })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.write_snapshots())
    }
}

impl<A: Aggregate, H: StreamHooks<A>> StreamCheck for Rebuilt<A, H> {
    fn take(&mut self, record: &Record) {
        self.list.read(&record.stream, record.position, record.version, &record.bytes);
        let Some(id) = id_of::<A>(&record.stream) else { return };
        if self.damaged.contains_key(&id) {
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
        }
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<Checked, CommandError>> {
        Box::pin(async move { self.compare_all().await })
    }
}

impl<A: Aggregate, H: StreamHooks<A>> Rebuilt<A, H> {
    async fn compare_all(&self) -> Result<Checked, CommandError> {
        let kind = A::KIND;
        let mut checked = Checked { streams: self.states.len() as u64, ..Checked::default() };
        let kept = locked(&self.streams.list).clone();
        if kept.position() == self.list.position() && kept != self.list {
            checked.findings.push(format!("the list of {kind}s differs from the log"));
        }
        for (id, (version, why)) in &self.damaged {
            let finding = format!("{kind} {id} cannot be replayed at version {version}: {why}");
            checked.findings.push(finding);
        }
        for (id, (version, state)) in &self.states {
            self.compare(id, *version, state, &mut checked.findings).await?;
            let listed = self.list.get(id).map(|listed| &listed.summary);
            if listed != state.summary().as_ref() {
                let finding = format!("the list shows {kind} {id} otherwise than its events do");
                checked.findings.push(finding);
            }
            let blobs = state.blobs().into_iter();
            checked.blobs.extend(blobs.map(|(what, blob)| (format!("{kind} {id}, {what}"), blob)));
        }
        Ok(checked)
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
