//! Files of the user's own that are replaced as a whole: a reader, or the next start after a power
//! cut, sees all of the old text or all of the new one.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
};

use tempfile::NamedTempFile;

/// Replaces the file at `path` by one with `bytes`, which only its owner may read.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // A name of its own for each writer: no lock keeps two commands from writing at once.
    let mut beside = NamedTempFile::new_in(folder)?;
    beside.write_all(bytes)?;
    // Before the rename: a name that survives a power cut without its bytes is an empty file.
    beside.as_file().sync_all()?;
    beside.persist(path)?;
    File::open(folder)?.sync_all()
}
