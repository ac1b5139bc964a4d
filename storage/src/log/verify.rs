//! The audit of a whole log: every record, its place and its hash.

use std::{collections::HashMap, sync::Arc};

use super::record::{CHAIN_START, Position, Record, RunningHash, Version};
use crate::{EventStore, StoreError, error::Damage};

/// Records fetched at once.
const PAGE_MAX: usize = 4096;

/// A log that is what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many records it has.
    pub records: u64,
    /// The running hash after the last.
    pub hash: RunningHash,
}

/// Walks the log of `store` from the first record to the tail as it was when this was called.
///
/// Computes every hash again, and checks that positions and the versions of every stream have no
/// gap and that the index finds the first and the last record of every stream. Remembers each stream's end, so it takes
/// memory in proportion to the number of streams. Calls `progress` after every page.
pub async fn verify(
    store: &dyn EventStore,
    mut progress: impl FnMut(Position),
) -> Result<Verified, StoreError> {
    let tail = *store.watch().borrow();
    let mut walk = Walk { position: 0, hash: CHAIN_START, streams: HashMap::new() };
    while walk.position < tail {
        let page = store.read_all(walk.position, PAGE_MAX).await?;
        if page.is_empty() {
            let position = walk.position + 1;
            return Err(StoreError::Damaged { position, what: Damage::Hole });
        }
        // Not beyond the tail of the beginning: a busy log would never be finished.
        for record in page.into_iter().take_while(|record| record.position <= tail) {
            walk.step(record)?;
        }
        progress(walk.position);
    }
    // The first and the last of every stream: what lies between follows from the versions of the
    // walk and from the extents, which a reader checks against the records.
    for (stream, head) in walk.streams {
        for (version, position) in [head.first, head.last] {
            let found = store.read(&stream, version - 1, 1).await?;
            if found.first().map(|record| record.position) != Some(position) {
                let what = Damage::IndexDiffers { stream: stream.to_string() };
                return Err(StoreError::Damaged { position, what });
            }
        }
    }
    Ok(Verified { records: walk.position, hash: walk.hash })
}

struct Walk {
    position: Position,
    hash: RunningHash,
    streams: HashMap<Arc<str>, Ends>,
}

/// Where a stream begins and where it ends.
struct Ends {
    first: (Version, Position),
    last: (Version, Position),
}

impl Walk {
    fn step(&mut self, record: Record) -> Result<(), StoreError> {
        let position = self.position + 1;
        let damaged = |what| Err(StoreError::Damaged { position, what });
        if record.position != position {
            return damaged(Damage::Hole);
        }
        if record.hash_after(&self.hash) != record.hash {
            return damaged(Damage::HashDiffers);
        }
        let place = (record.version, position);
        let ends = self.streams.entry(record.stream).or_insert(Ends { first: place, last: (0, 0) });
        if record.version != ends.last.0 + 1 {
            return damaged(Damage::Hole);
        }
        ends.last = place;
        self.position = position;
        self.hash = record.hash;
        Ok(())
    }
}
