//! States kept beside the log, for a quick next start.

use towpath_engine::ids::RunId;
use towpath_storage::{RunningHash, Version};

use super::{Loaded, Runs, SNAPSHOT_EVERY, locked, stream};
use crate::load;

impl Runs {
    /// Writes the state of a run beside the log. A failure costs time at the next start, no more.
    pub(crate) async fn snapshot(&self, id: &RunId, loaded: &mut Loaded) {
        let version = loaded.version;
        let Some(hash) = self.hash_at(id, version).await else { return };
        match load::write_snapshot(&self.snapshots, id, version, &hash, &loaded.run) {
            Ok(()) => loaded.snapshot_version = version,
            Err(error) => tracing::warn!(run = %id, %error, "no snapshot"),
        }
    }

    async fn hash_at(&self, id: &RunId, version: Version) -> Option<RunningHash> {
        let page = self.store.read(&stream(id), version - 1, 1).await.ok()?;
        page.first().filter(|record| record.version == version).map(|record| record.hash)
    }

    /// Writes snapshots of what is in memory, for a quick next start.
    pub(crate) async fn close(&self) {
        let cells = locked(&self.cells).all();
        for (id, cell) in cells {
            let mut loaded = cell.lock().await;
            let settled = *loaded.durable.borrow() == loaded.version;
            if settled && loaded.version >= loaded.snapshot_version + SNAPSHOT_EVERY / 4 {
                self.snapshot(&id, &mut loaded).await;
            }
        }
        let list = locked(&self.list).clone();
        if let Err(error) = load::write_list(&*self.store, &self.snapshots, &list).await {
            tracing::warn!(%error, "no snapshot of the list of runs");
        }
    }
}
