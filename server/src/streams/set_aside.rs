//! Streams whose records cannot be replayed, or that can record nothing more. They are named, and stop no other.

use towpath_engine::aggregate::Aggregate;
use towpath_storage::Version;

use super::{StreamHooks, Streams};
use crate::{command_error::CommandError, sync::locked};

impl<A: Aggregate, H: StreamHooks<A>> Streams<A, H> {
    /// Sets the stream aside if `error` says that its records cannot be replayed: nothing looks
    /// after it any more, so that it stops no other stream, no worker and no start of the server.
    pub(super) fn set_aside_if_damaged(&self, id: &A::Id, error: &CommandError) {
        if let CommandError::Unreplayable { version, why, .. } = error {
            self.set_aside_for(id, *version, why);
        }
    }

    /// Sets the stream aside, which fails after `version` for the reason `why`.
    pub(crate) fn set_aside_for(&self, id: &A::Id, version: Version, why: &str) {
        if locked(&self.set_aside).insert(id.clone(), (version, why.to_owned())).is_none() {
            let kind = A::KIND;
            tracing::error!(kind, %id, version, why, "stream set aside");
        }
        self.hooks.set_aside(id);
    }

    /// Has the hooks look at stream `id` again, although nothing was decided on it.
    pub(crate) async fn note_again(&self, id: &A::Id) -> Result<(), CommandError> {
        let loaded = self.lock_latest(id).await?;
        self.hooks.decided(id, &loaded.state, loaded.version, &[], self.log.now());
        Ok(())
    }

    /// Whether there is such a stream: it is in the log, or is just being created.
    pub(crate) fn is_known(&self, id: &A::Id) -> bool {
        locked(&self.list).get(id).is_some() || locked(&self.cells).get(id).is_some()
    }

    /// Whether `id` is live and can be replayed.
    pub(crate) fn is_live(&self, id: &A::Id) -> bool {
        !locked(&self.set_aside).contains_key(id) && locked(&self.list).is_live(id)
    }

    /// The streams that are live and can be replayed, oldest first.
    pub(crate) fn live(&self) -> Vec<A::Id> {
        let set_aside = locked(&self.set_aside);
        let list = locked(&self.list);
        list.live().filter(|id| !set_aside.contains_key(*id)).cloned().collect()
    }
}
