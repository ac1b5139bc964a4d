//! Puts a file where a job expects it, below its working folder and nowhere else: every folder on
//! the way is opened by its own name, and a link among them is refused.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, open, openat, renameat},
    sys::stat::{Mode, mkdirat},
};
use towpath_engine::source::path_problem;

/// Opens `name` of `folder`, if that is a folder and no link.
fn step(folder: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

/// Moves `file` to `path` below `root`, makes the folders that are missing, and takes the place of
/// a file that is there. Both must be on one file system. What it becomes can be read, not run.
pub(crate) fn place(root: &Path, path: &str, file: &Path) -> Result<(), String> {
    let failed = |why: &str| format!("`{}` {why}", path.escape_debug());
    if let Some(why) = path_problem(path) {
        return Err(failed(why));
    }
    let told = |error: Errno| {
        if matches!(error, Errno::ELOOP | Errno::ENOTDIR) {
            failed("leads through a link or a file")
        } else if matches!(error, Errno::EISDIR | Errno::EEXIST) {
            failed("is a folder")
        } else {
            failed(&format!("cannot be written: {}", error.desc()))
        }
    };
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    // Descriptor by descriptor: a path could be changed into a link after it was checked.
    let mut folder = open(root, flags, Mode::empty()).map_err(told)?;
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let next = match step(&folder, part) {
            // Opened again after it was made: another process may have put a link in its place.
            Err(Errno::ENOENT) => {
                mkdirat(&folder, part, Mode::from_bits_truncate(0o755)).map_err(told)?;
                step(&folder, part)
            }
            next => next,
        };
        folder = next.map_err(told)?;
    }
    // An artifact comes from another job. Whether it is a program is decided by the job that uses
    // it.
    let readable = fs::set_permissions(file, fs::Permissions::from_mode(0o644));
    readable.map_err(|error| failed(&error.to_string()))?;
    renameat(AT_FDCWD, file, &folder, name).map_err(told)
}

/// Whether `folder` below `root` is a folder that is reached without any link.
pub(crate) fn is_plain(root: &Path, folder: &str) -> bool {
    let parts = folder.split('/').filter(|part| !part.is_empty());
    let opened = || -> io::Result<()> {
        let mut at = OwnedFd::from(File::open(root)?);
        for part in parts {
            at = step(&at, part)?;
        }
        Ok(())
    };
    opened().is_ok()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use super::*;

    struct Yard(tempfile::TempDir);

    impl Yard {
        fn new() -> Self {
            let yard = tempfile::tempdir().unwrap();
            fs::create_dir(yard.path().join("work")).unwrap();
            fs::create_dir(yard.path().join("outside")).unwrap();
            Self(yard)
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn put(&self, path: &str, text: &str) -> Result<(), String> {
            fs::write(self.at("part"), text).unwrap();
            place(&self.at("work"), path, &self.at("part"))
        }
    }

    #[test]
    fn a_file_comes_to_its_path_and_takes_the_place_of_another() {
        let yard = Yard::new();
        yard.put("a/b/c.sql", "one").unwrap();
        yard.put("a/b/c.sql", "two").unwrap();
        assert_eq!(fs::read_to_string(yard.at("work/a/b/c.sql")).unwrap(), "two");
        let mode = fs::metadata(yard.at("work/a/b/c.sql")).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0);
    }

    #[test]
    fn no_link_leads_a_file_out_of_the_folder() {
        let yard = Yard::new();
        symlink(yard.at("outside"), yard.at("work/dir")).unwrap();
        symlink("..", yard.at("work/up")).unwrap();
        fs::create_dir(yard.at("work/in")).unwrap();
        symlink("in", yard.at("work/inside")).unwrap();
        fs::create_dir(yard.at("work/deep")).unwrap();
        symlink(yard.at("outside"), yard.at("work/deep/dir")).unwrap();

        for path in ["dir/x", "up/outside/x", "inside/x", "deep/dir/x", "dir/new/x"] {
            let error = yard.put(path, "x").unwrap_err();
            assert!(error.contains("leads through a link"), "{path}: {error}");
        }
        assert_eq!(fs::read_dir(yard.at("outside")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(yard.at("work/in")).unwrap().count(), 0);
    }

    #[test]
    fn a_link_at_the_end_is_replaced_and_not_followed() {
        let yard = Yard::new();
        fs::write(yard.at("outside/file"), "mine").unwrap();
        symlink(yard.at("outside/file"), yard.at("work/x")).unwrap();

        yard.put("x", "theirs").unwrap();

        assert_eq!(fs::read_to_string(yard.at("outside/file")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(yard.at("work/x")).unwrap(), "theirs");
    }

    #[test]
    fn paths_that_lead_out_or_name_folders_are_refused() {
        let yard = Yard::new();
        fs::create_dir_all(yard.at("work/folder/full")).unwrap();
        fs::write(yard.at("work/file"), "").unwrap();
        for path in ["../x", "/tmp/x", "a/../../x", "", "a//b", ".git/hooks/x", "folder", "file/x"]
        {
            yard.put(path, "x").unwrap_err();
        }
        assert!(!yard.at("x").exists());
    }

    #[test]
    fn a_folder_behind_a_link_is_not_plain() {
        let yard = Yard::new();
        fs::create_dir_all(yard.at("work/a/b")).unwrap();
        symlink("a", yard.at("work/l")).unwrap();
        let plain = |folder| is_plain(&yard.at("work"), folder);
        assert!(plain("") && plain("a") && plain("a/b"));
        assert!(!plain("l") && !plain("l/b") && !plain("nowhere"));
    }
}
