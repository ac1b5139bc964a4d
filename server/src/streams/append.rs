//! The one way into the log: what was decided is queued, and answered when it is durable.

use std::sync::Arc;

use tokio::sync::{OwnedMutexGuard, watch};
use towpath_engine::{
    aggregate::{Aggregate, Event as _, Written, stream_of},
    event::Fact,
    ids::Actor,
};
use towpath_storage::{AppendError, Appended, NewRecord, StoreError, Version};

use super::{
    Cell, Loaded, Queued, Recorded, SNAPSHOT_EVERY, StreamHooks, Streams, TRIES_MAX,
    decide_all::NotDecided, load, wait_until_durable,
};
use crate::{command_error::CommandError, sync::locked};

/// What was decided on a stream and is to be appended.
struct Decided<A: Aggregate, P> {
    facts: Vec<Fact<A::Event>>,
    records: Vec<NewRecord>,
    /// What the hooks keep of it until it is durable.
    pending: P,
}

impl<A: Aggregate, H: StreamHooks<A>> Streams<A, H> {
    /// Decides `commands` one after the other and queues all they record as one append. The answer
    /// resolves when that is durable. Only a refusal of the first command is reported: the others
    /// ask for something that may well not be there.
    pub(crate) async fn queue(
        self: &Arc<Self>,
        id: &A::Id,
        commands: &[A::Command],
        by: &Actor,
    ) -> Result<Queued<A::Event>, CommandError> {
        let (mut loaded, decided) = self.decide_under_lock(id, commands, by).await?;
        let Decided { facts, records, pending } = decided;
        let version = loaded.version;
        let expected = version - records.len() as Version;
        let (mut durable, id) = (loaded.durable.subscribe(), id.clone());
        // Queued under the lock, so appends of one stream stand in the order they were decided in.
        let append = (!records.is_empty())
            .then(|| self.log.store.append(&stream_of::<A>(&id), expected, records));
        loaded.outstanding += usize::from(append.is_some());
        let cell = Arc::clone(OwnedMutexGuard::mutex(&loaded));
        drop(loaded);
        let finished = append.map(|append| {
            let (streams, id) = (Arc::clone(self), id.clone());
            // A task of its own: what is queued is finished even if the caller goes away.
            tokio::spawn(
                async move { streams.finish(&id, &cell, (facts, pending), append.await).await },
            )
        });
        let done = async move {
            match finished {
                Some(task) => {
                    task.await.unwrap_or_else(|_| Err(AppendError::Store(StoreError::Closed)))
                }
                // Nothing new: but what this answer rests on must be durable too.
                None => match durable.wait_for(|durable| *durable >= version).await {
                    Ok(_) => Ok(Recorded { facts: Vec::new(), first: 0 }),
                    Err(_) => Err(given_up::<A>(&id, version)),
                },
            }
        };
        Ok(Queued { facts: version - expected, done: Box::pin(done) })
    }

    /// Decides `commands` on the stream, which stays locked.
    async fn decide_under_lock(
        &self,
        id: &A::Id,
        commands: &[A::Command],
        by: &Actor,
    ) -> Result<(OwnedMutexGuard<Loaded<A>>, Decided<A, H::Pending>), CommandError> {
        let (mut commands, mut tries) = (commands, 0);
        loop {
            let mut loaded = self.lock_latest(id).await?;
            match self.decide_on(id, &mut loaded, commands, by) {
                Ok(decided) => return Ok((loaded, decided)),
                Err(NotDecided { nth, error, spoiled }) => {
                    if spoiled {
                        self.give_up(id, &mut loaded).await;
                    } else if nth == 0
                        && matches!(error, CommandError::Refused(_))
                        && !self.hooks.is_asked_again(commands)
                    {
                        tries += 1;
                        // What it was decided on may still be refused by the disk, and a refusal
                        // that a client is told is believed.
                        let is_durable = wait_until_durable(loaded).await;
                        if !is_durable && tries < TRIES_MAX {
                            continue;
                        }
                        return Err(if is_durable { error } else { CommandError::Contended });
                    }
                    if nth == 0 {
                        return Err(error);
                    }
                    tracing::error!(kind = A::KIND, %id, %error, "a command was left out of its append");
                    // What came before it is good, and went with the memory that was given up. It
                    // is decided again alone; else a lease that fails would keep out, for ever, the
                    // report that freed its slot.
                    commands = &commands[..nth];
                }
            }
        }
    }

    fn decide_on(
        &self,
        id: &A::Id,
        loaded: &mut Loaded<A>,
        commands: &[A::Command],
        by: &Actor,
    ) -> Result<Decided<A, H::Pending>, NotDecided> {
        let exclusive = self.hooks.exclusive(&loaded.state, commands).map(locked);
        let mut pending = H::Pending::default();
        let written = self.decide_all(id, &mut loaded.state, commands, by, &mut pending)?;
        let (facts, records) = split(written);
        loaded.version += records.len() as Version;
        // Before others may decide: the next lease, of another run, must see these locks taken.
        self.hooks.decided(id, &loaded.state, loaded.version, &facts, self.log.now());
        drop(exclusive);
        Ok(Decided { facts, records, pending })
    }

    async fn finish(
        self: &Arc<Self>,
        id: &A::Id,
        cell: &Cell<A>,
        (facts, pending): (Vec<Fact<A::Event>>, H::Pending),
        appended: Result<Appended, AppendError>,
    ) -> Result<Recorded<A::Event>, AppendError> {
        let mut loaded = cell.lock().await;
        loaded.outstanding -= 1;
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                if stops_the_store(&error) {
                    self.log.stopped.cancel();
                }
                self.give_up(id, &mut loaded).await;
                return Err(error);
            }
        };
        for fact in &facts {
            let (stream, event) = (A::KIND, fact.event.kind());
            tracing::debug!(stream, %id, kind = event, by = %fact.by, "recorded");
        }
        if facts.iter().any(|fact| A::changes_idle(&fact.event)) {
            // By its state, not by these facts: those of a newer append may have been told already.
            let (bytes, idle) = (loaded.state.memory_bytes(), loaded.state.is_idle());
            locked(&self.cells).weigh(id, bytes, idle);
        }
        let before = appended.version - facts.len() as Version;
        locked(&self.list).apply_all(id, appended.first, before, &facts);
        self.log.appended(A::KIND, appended.first, appended.last);
        loaded.position = loaded.position.max(appended.last);
        loaded.durable.send_if_modified(|durable| {
            let newer = appended.version > *durable;
            *durable = appended.version.max(*durable);
            newer
        });
        self.hooks.durable(id, appended.version, &facts, pending);
        self.log.followers.recorded(&stream_of::<A>(id));
        if loaded.broken {
            self.give_up(id, &mut loaded).await;
        } else if loaded.version == appended.version
            && loaded.version >= loaded.snapshot_version + SNAPSHOT_EVERY
        {
            self.snapshot(id, &mut loaded).await;
        }
        drop(loaded);
        Ok(Recorded { facts, first: appended.first })
    }

    /// What memory holds was not written: forgets it and reads the log again. While appends are
    /// still on their way that would miss them, so the last of them does it.
    async fn give_up(&self, id: &A::Id, loaded: &mut Loaded<A>) {
        loaded.broken = true;
        if loaded.outstanding > 0 {
            return;
        }
        match load::stream::<A>(&*self.log.store, &self.log.snapshots, id).await {
            Ok(again) => {
                self.hooks.loaded(id, &again.state, again.version, self.log.now());
                *loaded = Loaded::from(again);
            }
            Err(error) => {
                tracing::warn!(kind = A::KIND, %id, %error, "stream could not be read again");
                self.set_aside_if_damaged(id, &error);
                locked(&self.cells).remove(id);
                loaded.durable = watch::Sender::new(0);
            }
        }
    }
}

fn split<E: towpath_engine::aggregate::Event>(
    written: Vec<Written<E>>,
) -> (Vec<Fact<E>>, Vec<NewRecord>) {
    written
        .into_iter()
        .map(|(fact, bytes)| {
            let record = NewRecord::new(fact.event.kind(), bytes);
            (fact, record)
        })
        .unzip()
}

/// Whether nothing more can be appended. Any other error of the store, such as the end of one stream
/// that cannot be read, concerns that append: the writer goes on, and so do the other streams.
fn stops_the_store(error: &AppendError) -> bool {
    let AppendError::Store(error) = error else { return false };
    matches!(error, StoreError::Stopped { .. } | StoreError::Closed)
}

/// What was waited for was decided on what is not in the log: to be decided again.
fn given_up<A: Aggregate>(id: &A::Id, expected: Version) -> AppendError {
    AppendError::Conflict { stream: stream_of::<A>(id), expected, actual: 0 }
}

pub(crate) fn store_error(error: AppendError) -> CommandError {
    match error {
        AppendError::Conflict { .. } => CommandError::Contended,
        AppendError::Store(error) => CommandError::Store(error),
        AppendError::Busy { .. } => CommandError::StoreBusy,
        AppendError::Full(full) => CommandError::Store(full.into()),
        error @ (AppendError::TooLarge { .. } | AppendError::Empty) => {
            CommandError::TooMuch { what: error.to_string() }
        }
    }
}
