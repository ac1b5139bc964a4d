//! States kept beside the log, for a quick next start.

use towpath_engine::aggregate::{Aggregate, stream_of};
use towpath_storage::{RunningHash, Version};

use super::{Loaded, SNAPSHOT_EVERY, StreamHooks, Streams, load};
use crate::sync::locked;

impl<A: Aggregate, H: StreamHooks<A>> Streams<A, H> {
    /// Writes the state of a stream beside the log. A failure costs time at the next start, no more.
    pub(super) async fn snapshot(&self, id: &A::Id, loaded: &mut Loaded<A>) {
        let version = loaded.version;
        let Some(hash) = self.hash_at(id, version).await else { return };
        match load::write_snapshot(&self.log.snapshots, id, version, &hash, &loaded.state) {
            Ok(()) => loaded.snapshot_version = version,
            Err(error) => tracing::warn!(kind = A::KIND, %id, %error, "snapshot not written"),
        }
    }

    async fn hash_at(&self, id: &A::Id, version: Version) -> Option<RunningHash> {
        let page = self.log.store.read(&stream_of::<A>(id), version - 1, 1).await.ok()?;
        page.first().filter(|record| record.version == version).map(|record| record.hash)
    }

    /// Writes snapshots of what is in memory.
    pub(super) async fn write_snapshots(&self) {
        let cells = locked(&self.cells).all();
        for (id, cell) in cells {
            let mut loaded = cell.lock().await;
            let settled = *loaded.durable.borrow() == loaded.version;
            if settled && loaded.version >= loaded.snapshot_version + SNAPSHOT_EVERY / 4 {
                self.snapshot(&id, &mut loaded).await;
            }
        }
        let list = locked(&self.list).clone();
        if let Err(error) = load::write_list(&*self.log.store, &self.log.snapshots, &list).await {
            tracing::warn!(kind = A::KIND, %error, "snapshot of the list not written");
        }
    }
}
