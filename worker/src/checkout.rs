//! The tree of one commit: looked over before anything of it is believed, and written into a folder
//! as plain files, folders and links. No filter, hook or setting of git has a say in it, and what
//! is written is no repository.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::Path,
};

use git2::{ObjectType, Odb, Oid, Repository};
use tokio_util::sync::CancellationToken;
use towpath_engine::source::{
    SOURCE_BYTES_MAX, SOURCE_FILE_BYTES_MAX, SOURCE_FILES_MAX, link_stays, path_problem,
};

/// What makes a tree unfit for a working folder.
#[derive(Debug, thiserror::Error)]
pub enum TreeProblem {
    /// A path that nothing is written to.
    #[error("`{}` {why}", .path.escape_debug())]
    Path {
        /// As the tree has it.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A link that leads out of the tree, or might.
    #[error("the link `{}` leads out of the folder, to `{}`", .path.escape_debug(), .target.escape_debug())]
    Link {
        /// Where it is.
        path: String,
        /// What it says.
        target: String,
    },
    /// A repository within.
    #[error("`{}` is a submodule", .path.escape_debug())]
    Submodule {
        /// Where it is.
        path: String,
    },
    /// More than `SOURCE_FILES_MAX`.
    #[error("there are more than {SOURCE_FILES_MAX} files and folders")]
    TooMany,
    /// A file larger than `SOURCE_FILE_BYTES_MAX`.
    #[error("`{}` has {bytes} bytes, and a file may have {SOURCE_FILE_BYTES_MAX}", .path.escape_debug())]
    FileTooLarge {
        /// Which.
        path: String,
        /// How large it is.
        bytes: u64,
    },
    /// More than `SOURCE_BYTES_MAX`.
    #[error("the files have more than {SOURCE_BYTES_MAX} bytes together")]
    TooLarge,
    /// Git cannot read it.
    #[error("the commit cannot be read: {}", .0.message())]
    Unreadable(#[from] git2::Error),
    /// The disk said no.
    #[error("`{path}` cannot be written: {source}")]
    Unwritable {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It was cancelled.
    #[error("it was cancelled")]
    Stopped,
}

/// One thing of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below the root, with `/`.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// How long it is; 0 for a folder.
    pub bytes: u64,
    id: Oid,
}

/// What an entry of a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder; it comes before what is in it.
    Folder,
    /// A file that is no program.
    File,
    /// A file that can be run.
    Program,
    /// A link, and what it says.
    Link(String),
}

/// Everything in the tree `tree`, if all of it may be written into a folder. Blocks.
pub fn survey(repository: &Repository, tree: Oid) -> Result<Vec<Entry>, TreeProblem> {
    let odb = repository.odb()?;
    let mut entries: Vec<Entry> = Vec::new();
    let mut folders = vec![(String::new(), tree)];
    let mut bytes = 0;
    while let Some((above, id)) = folders.pop() {
        for entry in &repository.find_tree(id)? {
            // Before anything is written: a small bundle can unpack to a tree without end.
            if entries.len() >= SOURCE_FILES_MAX {
                return Err(TreeProblem::TooMany);
            }
            // Git's own checks are not enough: objects that were made by hand can have names such
            // as `../x`.
            let path = path_of(&above, entry.name_bytes())?;
            let kind = kind_of(&odb, entry.filemode_raw(), entry.id(), &path)?;
            let own = match kind {
                EntryKind::Folder => {
                    folders.push((format!("{path}/"), entry.id()));
                    0
                }
                EntryKind::File | EntryKind::Program | EntryKind::Link(_) => {
                    size_of(&odb, entry.id(), &path)?
                }
            };
            bytes += own;
            if bytes > SOURCE_BYTES_MAX {
                return Err(TreeProblem::TooLarge);
            }
            entries.push(Entry { path, kind, bytes: own, id: entry.id() });
        }
    }
    Ok(entries)
}

fn path_of(above: &str, name: &[u8]) -> Result<String, TreeProblem> {
    let Ok(own) = std::str::from_utf8(name) else {
        let path = format!("{above}{}", String::from_utf8_lossy(name));
        return Err(TreeProblem::Path { path, why: "is not UTF-8" });
    };
    let path = format!("{above}{own}");
    let problem =
        // One name is one level. A name with a slash could lead through a link that is in the tree
        // as well.
        if own.contains('/') { Some("has a slash in a name") } else { path_problem(&path) };
    problem.map_or(Ok(path.clone()), |why| Err(TreeProblem::Path { path, why }))
}

fn kind_of(odb: &Odb<'_>, mode: i32, id: Oid, path: &str) -> Result<EntryKind, TreeProblem> {
    match mode {
        0o040_000 => Ok(EntryKind::Folder),
        0o100_644 | 0o100_664 => Ok(EntryKind::File),
        0o100_755 => Ok(EntryKind::Program),
        0o120_000 => {
            // Looked at first: a link of a gigabyte is none.
            size_of(odb, id, path)?;
            let target = String::from_utf8_lossy(odb.read(id)?.data()).into_owned();
            // A link out of the folder would let a job of one run read the files of the worker.
            if target.contains(['\0', '\u{fffd}']) || !link_stays(path, &target) {
                return Err(TreeProblem::Link { path: path.to_owned(), target });
            }
            Ok(EntryKind::Link(target))
        }
        0o160_000 => Err(TreeProblem::Submodule { path: path.to_owned() }),
        _ => Err(TreeProblem::Path { path: path.to_owned(), why: "is of an unknown kind" }),
    }
}

fn size_of(odb: &Odb<'_>, id: Oid, path: &str) -> Result<u64, TreeProblem> {
    // The header alone: the size is known before the content is in memory.
    let (bytes, kind) = odb.read_header(id)?;
    let path = || path.to_owned();
    if kind != ObjectType::Blob {
        return Err(TreeProblem::Path { path: path(), why: "is of an unknown kind" });
    }
    if bytes as u64 > SOURCE_FILE_BYTES_MAX {
        return Err(TreeProblem::FileTooLarge { path: path(), bytes: bytes as u64 });
    }
    Ok(bytes as u64)
}

/// Writes the tree of `commit` into the new folder `root`, unless `stop` says otherwise. Blocks.
///
/// Links come last and everything else is made again, so nothing is ever written through a link.
pub fn write(
    repository: &Repository,
    commit: Oid,
    root: &Path,
    stop: &CancellationToken,
) -> Result<(), TreeProblem> {
    let tree = repository.find_commit(commit)?.tree_id();
    let entries = survey(repository, tree)?;
    fs::create_dir(root).map_err(unwritable("."))?;
    let (links, others): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| matches!(entry.kind, EntryKind::Link(_)));
    for Entry { path, kind, id, .. } in others.into_iter().chain(links) {
        // A large tree takes many seconds, and a cancelled job must not wait for it.
        if stop.is_cancelled() {
            return Err(TreeProblem::Stopped);
        }
        let at = root.join(path);
        let written = match kind {
            EntryKind::Folder => fs::create_dir(&at),
            EntryKind::Link(target) => symlink(target, &at),
            EntryKind::File | EntryKind::Program => {
                let mode = if *kind == EntryKind::Program { 0o755 } else { 0o644 };
                let blob = repository.find_blob(*id)?;
                let mut options = OpenOptions::new();
                // `create_new` fails where two names become one file, on a file system without
                // upper case.
                let opened = options.write(true).create_new(true).mode(mode).open(&at);
                opened.and_then(|mut file| file.write_all(blob.content()))
            }
        };
        written.map_err(unwritable(path))?;
    }
    Ok(())
}

fn unwritable(path: &str) -> impl Fn(io::Error) -> TreeProblem {
    move |source| TreeProblem::Unwritable { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use git2::Signature;

    use super::*;

    const FILE: &str = "100644";
    const LINK: &str = "120000";
    const FOLDER: &str = "40000";

    struct Bench {
        folder: tempfile::TempDir,
        repository: Repository,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let repository = Repository::init_bare(folder.path().join("git")).unwrap();
            Self { folder, repository }
        }

        fn odb(&self) -> Odb<'_> {
            self.repository.odb().unwrap()
        }

        fn blob(&self, text: &str) -> Oid {
            self.repository.blob(text.as_bytes()).unwrap()
        }

        /// A tree of these very bytes: what git itself would refuse to make.
        fn tree(&self, entries: &[(&str, &str, Oid)]) -> Oid {
            let mut bytes = Vec::new();
            for (mode, name, id) in entries {
                bytes.extend_from_slice(format!("{mode} {name}\0").as_bytes());
                bytes.extend_from_slice(id.as_bytes());
            }
            self.odb().write(ObjectType::Tree, &bytes).unwrap()
        }

        fn commit(&self, tree: Oid) -> Oid {
            let text = format!(
                "tree {tree}\nauthor a <a@b> 0 +0000\ncommitter a <a@b> 0 +0000\n\nmade by hand\n"
            );
            self.odb().write(ObjectType::Commit, text.as_bytes()).unwrap()
        }

        fn write(&self, entries: &[(&str, &str, Oid)]) -> Result<(), String> {
            let commit = self.commit(self.tree(entries));
            let root = self.folder.path().join("work");
            let written = write(&self.repository, commit, &root, &CancellationToken::new());
            written.map_err(|problem| problem.to_string())
        }
    }

    #[test]
    fn a_tree_becomes_files_programs_folders_and_links() {
        let bench = Bench::new();
        let below = bench.tree(&[
            ("100755", "run", bench.blob("#!/bin/sh\n")),
            (LINK, "up", bench.blob("../a")),
        ]);
        bench.write(&[(FILE, "a", bench.blob("text")), (FOLDER, "b", below)]).unwrap();

        let work = bench.folder.path().join("work");
        assert_eq!(fs::read_to_string(work.join("b/up")).unwrap(), "text");
        let mode = |path| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::metadata(work.join(path)).unwrap().permissions().mode() & 0o100
        };
        assert_eq!((mode("a"), mode("b/run")), (0, 0o100));
        assert!(!work.join(".git").exists());
    }

    #[test]
    fn hostile_names_are_refused_before_anything_is_written() {
        let bench = Bench::new();
        let blob = bench.blob("x");
        let tree = bench.tree(&[(FILE, "x", blob)]);
        for name in [
            "..",
            ".",
            "",
            "a/b",
            "../../x",
            "/etc/x",
            ".git",
            ".GIT",
            ".g\u{200c}it",
            ".git ",
            "git~1",
            "a\nb",
            "\u{1b}[2J",
            ".towpath",
        ] {
            for (mode, id) in [(FILE, blob), (LINK, blob), (FOLDER, tree)] {
                let error = bench.write(&[(FILE, "aa", blob), (mode, name, id)]).unwrap_err();
                assert!(!error.contains("cannot be written"), "{name:?}: {error}");
            }
        }
        assert!(!bench.folder.path().join("work").exists());
    }

    #[test]
    fn links_out_of_the_tree_are_refused() {
        let bench = Bench::new();
        for target in ["/etc", "..", "../x", "b/..", "", "a\0b", ".git"] {
            let error = bench.write(&[(LINK, "l", bench.blob(target))]).unwrap_err();
            assert!(error.contains("leads out"), "{target:?}: {error}");
        }
    }

    #[test]
    fn nothing_is_written_through_a_link_of_the_same_name() {
        let bench = Bench::new();
        let tree = bench.tree(&[(FILE, "x", bench.blob("x"))]);
        let link = bench.blob("elsewhere");
        bench.write(&[(LINK, "d", link), (FOLDER, "d", tree)]).unwrap_err();

        let work = bench.folder.path().join("work");
        assert!(!work.join("elsewhere").exists());
        assert!(fs::symlink_metadata(work.join("d")).unwrap().is_dir());
    }

    #[test]
    fn submodules_odd_modes_and_what_is_not_there_are_refused() {
        let bench = Bench::new();
        let blob = bench.blob("x");
        let nowhere = Oid::from_bytes(&[7; 20]).unwrap();
        for (mode, id, why) in [
            ("160000", nowhere, "submodule"),
            ("10644", blob, "unknown kind"),
            (FILE, nowhere, "cannot be read"),
            (FILE, bench.tree(&[]), "unknown kind"),
            (FOLDER, blob, "cannot be read"),
        ] {
            let error = bench.write(&[(mode, "a", id)]).unwrap_err();
            assert!(error.contains(why), "{mode}: {error}");
        }
    }

    #[test]
    fn a_small_pack_that_unfolds_into_too_much_is_refused() {
        let bench = Bench::new();
        let mut tree = bench.tree(&[(FILE, "x", bench.blob("x"))]);
        for _ in 0..6 {
            let names: Vec<String> = (0..10).map(|n| n.to_string()).collect();
            let entries: Vec<_> = names.iter().map(|name| (FOLDER, name.as_str(), tree)).collect();
            tree = bench.tree(&entries);
        }
        let error = bench.write(&[(FOLDER, "a", tree)]).unwrap_err();
        assert!(error.contains("more than 100000 files"), "{error}");
    }

    #[test]
    fn a_commit_without_its_history_is_enough() {
        let bench = Bench::new();
        let tree = bench.repository.find_tree(bench.tree(&[])).unwrap();
        let who = Signature::new("a", "a@b", &git2::Time::new(0, 0)).unwrap();
        let before = bench.repository.commit(None, &who, &who, "1", &tree, &[]).unwrap();
        let before = bench.repository.find_commit(before).unwrap();
        let id = bench.repository.commit(None, &who, &who, "2", &tree, &[&before]).unwrap();
        let mut pack = bench.repository.packbuilder().unwrap();
        pack.insert_commit(id).unwrap();
        let mut bytes = git2::Buf::new();
        pack.write_buf(&mut bytes).unwrap();

        let other = Repository::init_bare(bench.folder.path().join("other")).unwrap();
        let odb = other.odb().unwrap();
        let mut writer = odb.packwriter().unwrap();
        writer.write_all(&bytes).unwrap();
        writer.commit().unwrap();

        let root = bench.folder.path().join("work");
        write(&other, id, &root, &CancellationToken::new()).unwrap();
    }
}
