//! Files and directories that survive a power cut.
//!
//! A file that is written in place can be found empty or half written after a crash, and a file
//! that is renamed without a sync can be found under its new name without its bytes. The functions
//! here do all three steps: sync the bytes, rename, sync the directory that holds the name.
//!
//! Not here: who may write. Two writers of one path must exclude each other with a lock.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Permissions of a directory that only its owner may read.
pub const OWNER_ONLY_DIRECTORY: u32 = 0o700;

/// Permissions of a file that only its owner may read.
pub const OWNER_ONLY_FILE: u32 = 0o600;

/// Replaces the file at `path` by one that holds `bytes` and has the permissions `mode`.
///
/// A reader sees all of the old file or all of the new one, also after a power cut. What a killed
/// writer left beside the file is removed by the next one.
pub fn replace_file(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    // What a killed writer left may have other permissions, which `create_new` does not change.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    // Bytes, rename, name, in this order: each step makes durable what the next one relies on.
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let replaced = written.and_then(|()| fs::rename(&beside, path));
    if let Err(error) = replaced {
        // The first error is returned. On a full disk the half file would only take more of it.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    // The rename is durable only with the directory.
    sync_directory(parent_of(path))
}

/// Creates the directory `path` with the permissions `mode`, and its parents, if they are missing.
pub fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    // Each level that is made is a name in the one above: a power cut may take a name that was not
    // synced, and with it all that is below.
    let missing = missing_levels(path);
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    for level in missing {
        sync_directory(parent_of(level))?;
    }
    sync_directory(parent_of(path))
}

/// The directories that must be made for `path` to be there, without itself, lowest first.
fn missing_levels(path: &Path) -> Vec<&Path> {
    let above = path.ancestors().skip(1).filter(|level| *level != Path::new(""));
    above.take_while(|level| !level.exists()).collect()
}

/// Makes the names in the directory `path` durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes every file below the directory `path` durable, and their names.
pub fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            // A descriptor opened for reading syncs what any other wrote.
            File::open(&path)?.sync_all()?;
        }
    }
    sync_directory(path)
}

/// The directory that holds the name `path`.
pub fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Where the next version of the file at `path` is written: hidden, and with the same name each
/// time, so that a killed writer leaves at most one.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_level_that_is_made_is_known_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c");
        assert_eq!(
            missing_levels(&path),
            [folder.path().join("a/b"), folder.path().join("a")].each_ref().map(PathBuf::as_path)
        );

        create_directory(&path, 0o700).unwrap();

        assert_eq!(missing_levels(&path), [] as [&Path; 0]);
        assert_eq!(missing_levels(Path::new("new")), [] as [&Path; 0]);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_what_a_killed_writer_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        fs::write(beside(&path), "half").unwrap();

        for text in ["first", "second, which is longer", "third"] {
            replace_file(&path, 0o640, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }

        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_replaced_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        fs::create_dir(&path).unwrap();

        replace_file(&path, 0o600, b"text").unwrap_err();

        assert!(path.is_dir());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_bare_name_lies_in_the_current_directory() {
        assert_eq!(parent_of(Path::new("name")), Path::new("."));
        assert_eq!(parent_of(Path::new("a/name")), Path::new("a"));
        assert_eq!(beside(Path::new("a/name")), Path::new("a/.name.new"));
    }
}
