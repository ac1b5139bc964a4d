//! The seam for stores: backends that this crate does not know go through the same way of opening.
//!
//! One is a key-value database, and passes the contract as sled and fjall do. The other keeps its
//! log elsewhere, as a database server does, and has a directory beside it all the same.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    ops::RangeInclusive,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
};

use bytes::Bytes;
use towpath_storage::{
    Backend, Blobs, Directory, Entry, EventStore, Found, KvBackend, KvError, KvFiles, MemoryStore,
    NewRecord, StoreDir, StoreError, StoreErrorKind, StoreUrl, UrlFault, backup, directory_at,
    restore_to,
};

/// What a program that has both would put into its table.
const TABLE: &[&'static dyn Backend] = &[&Journal, &Elsewhere];

/// `journal:PATH`: a key-value database that appends every write to one file.
#[derive(Debug)]
struct Journal;

impl Backend for Journal {
    fn scheme(&self) -> &'static str {
        "journal"
    }

    fn usage(&self) -> &'static str {
        "journal:PATH"
    }

    fn directory(&self, rest: &str) -> Result<Directory, UrlFault> {
        directory_at(rest)
    }

    fn open(&self, _rest: &str, dir: &mut StoreDir) -> Result<Arc<dyn EventStore>, StoreError> {
        let open = |path: &Path| Ok(Arc::new(JournalFile::open(path)?) as Arc<dyn KvBackend>);
        KvFiles { directory: "journal", landmark: "all", open }.open_log(dir)
    }
}

#[derive(Debug)]
struct JournalFile {
    file: File,
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl JournalFile {
    fn open(directory: &Path) -> Result<Self, KvError> {
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).read(true).open(directory.join("all"));
        let mut file = file.map_err(KvError::of_io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(KvError::of_io)?;
        let mut parts = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some((len, after)) = rest.split_first_chunk::<8>() {
            let (part, after) = after.split_at(usize::try_from(u64::from_be_bytes(*len)).unwrap());
            parts.push(part.to_vec());
            rest = after;
        }
        let pairs = parts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok(Self { file, map: Mutex::new(pairs.collect()) })
    }
}

impl KvBackend for JournalFile {
    fn put(&self, entries: Vec<Entry>) -> Result<(), KvError> {
        let mut bytes = Vec::new();
        for part in entries.iter().flat_map(|(key, value)| [key, value]) {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        let written = (&self.file).write_all(&bytes).and_then(|()| self.file.sync_data());
        written.map_err(KvError::unavailable)?;
        self.map.lock().unwrap().extend(entries);
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        Ok(self.map.lock().unwrap().get(key).map(|value| value.clone().into()))
    }

    fn last_in(&self, keys: RangeInclusive<&[u8]>) -> Result<Option<Found>, KvError> {
        let map = self.map.lock().unwrap();
        let found = map.range(keys.start().to_vec()..=keys.end().to_vec()).next_back();
        Ok(found.map(|(key, value)| (key.clone().into(), value.clone().into())))
    }

    fn first_in(&self, keys: RangeInclusive<&[u8]>, limit: usize) -> Result<Vec<Found>, KvError> {
        let map = self.map.lock().unwrap();
        let found = map.range(keys.start().to_vec()..=keys.end().to_vec()).take(limit);
        Ok(found.map(|(key, value)| (key.clone().into(), value.clone().into())).collect())
    }
}

/// `elsewhere://USER:PASSWORD@HOST/NAME?dir=PATH`: a whole log of its own, on a server.
#[derive(Debug)]
struct Elsewhere;

/// The logs on that server.
static SERVER: LazyLock<Mutex<HashMap<String, Arc<MemoryStore>>>> = LazyLock::new(Mutex::default);

impl Backend for Elsewhere {
    fn scheme(&self) -> &'static str {
        "elsewhere"
    }

    fn usage(&self) -> &'static str {
        "elsewhere://HOST/NAME?dir=PATH"
    }

    fn directory(&self, rest: &str) -> Result<Directory, UrlFault> {
        let (_, path) = rest.split_once("?dir=").ok_or(UrlFault::PathMissing)?;
        Ok(Directory::Beside(path.into()))
    }

    fn open(&self, rest: &str, _dir: &mut StoreDir) -> Result<Arc<dyn EventStore>, StoreError> {
        let name = rest.split('?').next().unwrap_or_default().to_owned();
        let mut server = SERVER.lock().unwrap();
        let log: Arc<dyn EventStore> = Arc::clone(server.entry(name).or_default()) as _;
        Ok(log)
    }
}

fn url(text: &str) -> StoreUrl {
    StoreUrl::parse_among(TABLE, text).unwrap()
}

mod contract {
    use super::url;

    towpath_storage::event_store_contract! {
        durable |directory| url(&format!("journal:{}", directory.display())).open().unwrap().store
    }
}

#[tokio::test]
async fn a_log_elsewhere_has_a_directory_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = folder.path().join(name);
        url(&format!("elsewhere://ana:secret@host/{name}?dir={}", path.display()))
    };

    let opened = at("one").open().unwrap();
    opened.store.append("run/a", 0, vec![NewRecord::new("k", "v")]).await.unwrap();
    let blobs = Blobs::open(&opened.dir.blobs()).unwrap();
    blobs.put(b"a blob").unwrap();
    assert_eq!(at("one").open().unwrap_err().kind(), StoreErrorKind::Owned);
    assert!(!at("one").to_string().contains("secret"), "{}", at("one"));

    let file = folder.path().join("backup");
    let kept = backup(opened.store.as_ref(), &blobs, &file, |_| {}).await.unwrap();
    let restored = restore_to(&file, &at("two"), &mut |_| {}).await.unwrap();
    assert_eq!(restored, kept);
    assert!(at("two").open().unwrap().dir.fence_base() > 0, "positions come again");
    let again = restore_to(&file, &at("two"), &mut |_| {}).await.unwrap_err();
    assert_eq!(again.kind(), StoreErrorKind::RestoreTargetNotEmpty);
}

#[test]
fn a_directory_belongs_to_the_backend_that_wrote_it() {
    let folder = tempfile::tempdir().unwrap();
    drop(url(&format!("journal:{}", folder.path().display())).open().unwrap());

    // Also to a program that was built without that backend.
    let error = towpath_storage::open(&format!("sled:{}", folder.path().display())).unwrap_err();

    assert_eq!(error.kind(), StoreErrorKind::BackendDiffers);
    assert!(error.to_string().contains("is a journal store, not a sled one"), "{error}");
}

#[test]
fn an_unknown_scheme_lists_what_the_table_has() {
    let error = StoreUrl::parse_among(TABLE, "sled:x").unwrap_err();

    assert_eq!(error.kind(), StoreErrorKind::UrlInvalid);
    let usages = "`journal:PATH` or `elsewhere://HOST/NAME?dir=PATH`";
    assert!(error.to_string().ends_with(usages), "{error}");
}
