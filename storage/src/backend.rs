//! What a backend is: a kind of store, as the scheme of a URL names it.

use std::{fmt::Debug, path::PathBuf, sync::Arc};

use crate::{
    EventStore,
    error::{StoreError, UrlFault},
    store_dir::StoreDir,
};

/// A kind of store.
pub trait Backend: Debug + Send + Sync + 'static {
    /// The word before the colon of its URLs, in lower case; also what the file `format` of a store
    /// says.
    fn scheme(&self) -> &'static str;

    /// How its URLs are written, for help and messages, such as `sled:PATH`.
    fn usage(&self) -> &'static str;

    /// Says whether a store is still there after its process has ended.
    fn is_durable(&self) -> bool {
        true
    }

    /// Which directory belongs to the store whose URL has `rest` after the colon.
    ///
    /// Checks `rest` without opening anything.
    fn directory(&self, rest: &str) -> Result<Directory, UrlFault>;

    /// Opens the log of that store, or creates it. Blocks.
    ///
    /// `dir` is that directory, and locked. The log keeps [`StoreDir::owner`] for as long as it
    /// uses anything in it. A backend that finds that positions may come again, because the log is
    /// shorter than it once was, calls [`StoreDir::raise_fence_base`].
    fn open(&self, rest: &str, dir: &mut StoreDir) -> Result<Arc<dyn EventStore>, StoreError>;
}

/// Which directory a store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Directory {
    /// This one, which holds all of the store: moved elsewhere, it is the same store. The rest of
    /// the URL is its path.
    Whole(PathBuf),
    /// This one, which holds everything but the log.
    Beside(PathBuf),
    /// One of its own that ends with the process.
    Temporary,
}
