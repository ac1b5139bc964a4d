//! The second backend: fjall 3, a log-structured tree. It syncs what it says it syncs.

use std::{ops::RangeInclusive, path::Path, sync::Arc};

use bytes::Bytes;
use fjall::{Database, Error, Keyspace, KeyspaceCreateOptions, KvPair, LsmError, PersistMode};

use super::{
    Entry, Found, KvBackend, KvError,
    catch_panic::catch_panic,
    files::{KvFiles, directory_at},
};
use crate::{
    EventStore,
    backend::{Backend, Directory},
    error::{StoreError, UrlFault},
    store_dir::StoreDir,
};

/// Bytes of table blocks fjall keeps in memory.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes fjall gathers in memory before it writes a table.
const MEMTABLE_BYTES: u64 = 8 * 1024 * 1024;

/// `fjall:PATH`.
#[derive(Debug)]
pub(crate) struct Fjall;

impl Backend for Fjall {
    fn scheme(&self) -> &'static str {
        "fjall"
    }

    fn usage(&self) -> &'static str {
        "fjall:PATH"
    }

    fn directory(&self, rest: &str) -> Result<Directory, UrlFault> {
        directory_at(rest)
    }

    fn open(&self, _rest: &str, dir: &mut StoreDir) -> Result<Arc<dyn EventStore>, StoreError> {
        let open = |path: &Path| Ok(Arc::new(FjallBackend::open(path)?) as Arc<dyn KvBackend>);
        KvFiles { directory: "fjall", landmark: "version", open }.open_log(dir)
    }
}

/// A fjall database with the one keyspace of the log.
#[derive(Debug)]
struct FjallBackend {
    records: Records,
    db: Db,
}

struct Records(Keyspace);
struct Db(Database);

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Records").field(&self.0.path()).finish()
    }
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").finish_non_exhaustive()
    }
}

impl FjallBackend {
    /// Opens or creates the database in `directory`.
    fn open(directory: &Path) -> Result<Self, KvError> {
        catch_panic(|| {
            let db = Database::builder(directory).cache_size(CACHE_BYTES).worker_threads(1).open();
            let db = db.map_err(kv_error)?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            let records = db.keyspace("records", options).map_err(kv_error)?;
            // What a killed process wrote may be visible and not yet durable.
            db.persist(PersistMode::SyncAll).map_err(kv_error)?;
            Ok(Self { records: Records(records), db: Db(db) })
        })
    }
}

impl KvBackend for FjallBackend {
    fn put(&self, entries: Vec<Entry>) -> Result<(), KvError> {
        catch_panic(|| {
            // One batch is atomic, and `SyncAll` syncs the journal before `commit` returns.
            let mut batch = self.db.0.batch().durability(Some(PersistMode::SyncAll));
            for (key, value) in entries {
                batch.insert(&self.records.0, key, value);
            }
            batch.commit().map_err(kv_error)
        })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let value = catch_panic(|| self.records.0.get(key).map_err(kv_error))?;
        Ok(value.map(Bytes::from_owner))
    }

    fn last_in(&self, keys: RangeInclusive<&[u8]>) -> Result<Option<Found>, KvError> {
        let found = catch_panic(|| {
            let last = self.records.0.range(keys).next_back();
            last.map(|guard| guard.into_inner().map_err(kv_error)).transpose()
        });
        Ok(found?.map(found_entry))
    }

    fn first_in(&self, keys: RangeInclusive<&[u8]>, limit: usize) -> Result<Vec<Found>, KvError> {
        catch_panic(|| {
            let entries = self.records.0.range(keys).take(limit);
            entries.map(|guard| guard.into_inner().map(found_entry).map_err(kv_error)).collect()
        })
    }
}

fn found_entry((key, value): KvPair) -> Found {
    (Bytes::from_owner(key), Bytes::from_owner(value))
}

fn kv_error(error: Error) -> KvError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "fjall's enums may grow")]
    match error {
        Error::Io(error) | Error::Storage(LsmError::Io(error)) => KvError::of_io(error),
        Error::JournalRecovery(fault) => KvError::Damaged(format!(
            "fjall found a batch in its journal that is not whole ({fault:?})"
        )),
        Error::Poisoned | Error::Locked => KvError::Unavailable(Arc::new(error)),
        error => KvError::Damaged(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use crate::open;

    crate::event_store_contract! {
        durable |directory| open(&format!("fjall:{}", directory.display())).unwrap().store
    }
}
