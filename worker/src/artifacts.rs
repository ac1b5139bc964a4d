//! Finds the files that a job leaves behind, below its folder and nowhere else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Component, Path, PathBuf},
};

use glob::{MatchOptions, Pattern};
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};
use towpath_engine::{ids::Digest, source::path_problem};

use crate::attempt::ArtifactFile;

/// Most artifacts of one attempt.
pub const ARTIFACTS_MAX: usize = 1_000;
/// Largest artifact, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Most that the list of artifacts may take in an event, in bytes. Source: an event has 60 KiB,
/// outputs may take 16 KiB of them twice over.
pub const ARTIFACT_LIST_BYTES_MAX: usize = 24 * 1024;
/// What an artifact takes in an event besides its path, in bytes.
const LISTED_BYTES: usize = 120;
/// Most files and folders that are looked at for one glob.
const ENTRIES_MAX: usize = 200_000;
const READ_BYTES: usize = 128 * 1024;

/// What is wrong with a job's artifacts.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactsUnusable {
    /// Not a path or glob below the folder.
    #[error("the artifact `{pattern}` is not a path or glob below the folder")]
    PatternMalformed {
        /// As the job has it.
        pattern: String,
    },
    /// A path without wildcards names nothing.
    #[error("the artifact `{path}` does not exist")]
    Missing {
        /// As the job has it.
        path: String,
    },
    /// A path leads out of the folder, by a symbolic link.
    #[error("the artifact `{path}` is outside the folder")]
    Outside {
        /// Below the folder.
        path: String,
    },
    /// Neither a file nor a folder, or its name is not UTF-8.
    #[error("the artifact `{path}` is not a file")]
    NotAFile {
        /// Below the folder.
        path: String,
    },
    /// No server records an artifact of this name.
    #[error("the path of the artifact `{path}` {why}")]
    PathUnusable {
        /// Below the folder, escaped.
        path: String,
        /// Why.
        why: &'static str,
    },
    /// More than [`ARTIFACTS_MAX`], or too many long paths.
    #[error("there are more artifacts than an event can list")]
    TooMany,
    /// More than `ENTRIES_MAX`.
    #[error("the artifact `{pattern}` searches more than {ENTRIES_MAX} files")]
    TooWide {
        /// As the job has it.
        pattern: String,
    },
    /// More than [`ARTIFACT_BYTES_MAX`].
    #[error("the artifact `{path}` has more than {ARTIFACT_BYTES_MAX} bytes")]
    TooLarge {
        /// Below the folder.
        path: String,
    },
    /// The system said no.
    #[error("the artifact `{path}` cannot be read: {source}")]
    Unreadable {
        /// Below the folder.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The files below `folder` that `patterns` name, sorted by path, each once. Blocks.
/// A folder means all files below it. Symbolic links are never followed out of the folder,
/// and globs do not follow them at all.
pub(crate) fn find(
    folder: &Path,
    patterns: &[String],
) -> Result<Vec<ArtifactFile>, ArtifactsUnusable> {
    // Paths are compared with it after their links were resolved, so its own links are resolved as
    // well.
    let root = folder.canonicalize().map_err(|source| unreadable(".", source))?;
    let mut paths = BTreeSet::new();
    for pattern in patterns {
        find_one(&root, pattern, &mut paths)?;
    }
    for path in &paths {
        // The rule is the engine's, for both ends: a server asks it again.
        if let Some(why) = path_problem(path) {
            let path = path.escape_debug().to_string();
            return Err(ArtifactsUnusable::PathUnusable { path, why });
        }
    }
    // Before any file is read: hashing a thousand files that no event can list would be wasted.
    let listed: usize = paths.iter().map(|path: &String| path.len() + LISTED_BYTES).sum();
    if paths.len() > ARTIFACTS_MAX || listed > ARTIFACT_LIST_BYTES_MAX {
        return Err(ArtifactsUnusable::TooMany);
    }
    let mut files = BTreeMap::new();
    for path in paths {
        let file = hashed(&root, &path)?;
        files.insert(path, file);
    }
    Ok(files.into_values().collect())
}

fn find_one(
    root: &Path,
    pattern: &str,
    paths: &mut BTreeSet<String>,
) -> Result<(), ArtifactsUnusable> {
    let malformed = || ArtifactsUnusable::PatternMalformed { pattern: pattern.to_owned() };
    let mut parts = Vec::new();
    for part in Path::new(pattern).components() {
        match part {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(malformed)?),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(malformed());
            }
        }
    }
    if parts.is_empty() {
        return Err(malformed());
    }
    // The walk begins at the last folder without wildcards, not at the root of a large checkout.
    let plain = parts.iter().take_while(|part| !part.contains(['*', '?', '['])).count();
    let start = root.join(parts[..plain].join("/"));
    if plain == parts.len() {
        return add_literal(root, &start, pattern, paths);
    }
    let wanted = Pattern::new(&parts.join("/")).map_err(|_| malformed())?;
    // A job may have replaced the folder by a link to any file of this machine.
    let inside = start.canonicalize().is_ok_and(|start| start.starts_with(root));
    if !inside || !is_plain_folder(&start) {
        return Ok(());
    }
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
    let walked = walk(root, &start, pattern)?;
    let matches = |path: &str| {
        // A folder that matches means the files below it.
        path.match_indices('/')
            .map(|(end, _)| &path[..end])
            .chain([path])
            .any(|part| wanted.matches_with(part, options))
    };
    paths.extend(walked.into_iter().filter(|path| matches(path)));
    Ok(())
}

fn add_literal(
    root: &Path,
    path: &Path,
    pattern: &str,
    paths: &mut BTreeSet<String>,
) -> Result<(), ArtifactsUnusable> {
    let missing = |_| ArtifactsUnusable::Missing { path: pattern.to_owned() };
    let real = path.canonicalize().map_err(missing)?;
    if !real.starts_with(root) {
        return Err(ArtifactsUnusable::Outside { path: pattern.to_owned() });
    }
    if real.is_dir() {
        paths.extend(walk(root, &real, pattern)?);
    } else {
        paths.insert(below(root, path)?);
    }
    Ok(())
}

/// All files below `start`, as paths below `root`.
fn walk(root: &Path, start: &Path, pattern: &str) -> Result<Vec<String>, ArtifactsUnusable> {
    let mut files = Vec::new();
    let mut folders = vec![start.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        let failed = |source| unreadable(&folder.display().to_string(), source);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            seen += 1;
            // A glob must not keep the worker busy for hours over a tree of a million files.
            if seen > ENTRIES_MAX {
                return Err(ArtifactsUnusable::TooWide { pattern: pattern.to_owned() });
            }
            if kind.is_dir() {
                // A glob such as `**` means what the job made, and no server records these.
                if entry.file_name() != ".git" && entry.file_name() != ".towpath" {
                    folders.push(entry.path());
                }
            } else if kind.is_file() {
                files.push(below(root, &entry.path())?);
            }
        }
    }
    Ok(files)
}

fn below(root: &Path, path: &Path) -> Result<String, ArtifactsUnusable> {
    let below = path.strip_prefix(root).ok().and_then(Path::to_str);
    below
        .map(str::to_owned)
        .ok_or_else(|| ArtifactsUnusable::NotAFile { path: path.display().to_string() })
}

fn is_plain_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn hashed(root: &Path, path: &str) -> Result<ArtifactFile, ArtifactsUnusable> {
    let failed = |source| unreadable(path, source);
    let absolute: PathBuf = root.join(path).canonicalize().map_err(failed)?;
    // Again, because the job's processes may have replaced a file by a link since the search.
    if !absolute.starts_with(root) {
        return Err(ArtifactsUnusable::Outside { path: path.to_owned() });
    }
    // `O_NONBLOCK`: opening a named pipe would wait for a writer. It has no effect on files.
    let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
    let mut file =
        OpenOptions::new().read(true).custom_flags(flags).open(&absolute).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ArtifactsUnusable::NotAFile { path: path.to_owned() });
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        size += read as u64;
        // Counted while reading: the file may grow after its size was asked for.
        if size > ARTIFACT_BYTES_MAX {
            return Err(ArtifactsUnusable::TooLarge { path: path.to_owned() });
        }
        hash.update(&buffer[..read]);
    }
    let sha256 = Digest(hash.finalize().into());
    Ok(ArtifactFile { path: path.to_owned(), absolute, size, sha256 })
}

fn unreadable(path: &str, source: io::Error) -> ArtifactsUnusable {
    ArtifactsUnusable::Unreadable { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for folder in ["work/out/deep", "work/.hidden", "elsewhere"] {
            fs::create_dir_all(tree.path().join(folder)).unwrap();
        }
        for file in
            ["work/a.sql", "work/b.sql", "work/out/c.sql", "work/out/deep/d.txt", "elsewhere/x.sql"]
        {
            fs::write(tree.path().join(file), file).unwrap();
        }
        tree
    }

    fn found(tree: &tempfile::TempDir, patterns: &[&str]) -> Result<Vec<String>, String> {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let files =
            find(&tree.path().join("work"), &patterns).map_err(|error| error.to_string())?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    #[test]
    fn paths_globs_and_folders_name_files() {
        let tree = tree();
        assert_eq!(found(&tree, &["b.sql", "./*.sql"]).unwrap(), ["a.sql", "b.sql"]);
        assert_eq!(found(&tree, &["**/*.sql"]).unwrap(), ["a.sql", "b.sql", "out/c.sql"]);
        assert_eq!(found(&tree, &["out"]).unwrap(), ["out/c.sql", "out/deep/d.txt"]);
        assert_eq!(found(&tree, &["out/*"]).unwrap(), ["out/c.sql", "out/deep/d.txt"]);
        assert_eq!(found(&tree, &["*.csv", "none/*.csv"]).unwrap(), [""; 0]);
    }

    #[test]
    fn globs_pass_over_the_folders_of_repositories_and_stores() {
        let tree = tree();
        for folder in [".git", ".towpath"] {
            fs::create_dir_all(tree.path().join("work/out").join(folder)).unwrap();
            fs::write(tree.path().join("work/out").join(folder).join("x.sql"), "").unwrap();
        }
        assert_eq!(found(&tree, &["out/**/*.sql"]).unwrap(), ["out/c.sql"]);
    }

    #[test]
    fn a_file_comes_with_its_size_and_digest() {
        let tree = tree();
        let files = find(&tree.path().join("work"), &["a.sql".to_owned()]).unwrap();
        assert_eq!(files[0].size, 10);
        assert_eq!(files[0].sha256, Digest::of(b"work/a.sql"));
        assert!(files[0].absolute.is_absolute());
    }

    #[test]
    fn a_named_file_must_be_there() {
        let error = found(&tree(), &["nowhere.sql"]).unwrap_err();
        assert_eq!(error, "the artifact `nowhere.sql` does not exist");
    }

    #[test]
    fn nothing_outside_the_folder_is_taken() {
        let tree = tree();
        for pattern in ["../elsewhere/x.sql", "/etc/passwd", "out/../../elsewhere/*", "", ".", "[a"]
        {
            let error = found(&tree, &[pattern]).unwrap_err();
            assert!(error.contains("is not a path or glob"), "{pattern}: {error}");
        }
        let work = tree.path().join("work");
        symlink("../elsewhere", work.join("linked")).unwrap();
        symlink("../elsewhere/x.sql", work.join("linked.sql")).unwrap();
        symlink(".", work.join("loop")).unwrap();
        for path in ["linked/x.sql", "linked.sql", "linked"] {
            assert!(found(&tree, &[path]).unwrap_err().contains("outside"), "{path}");
        }
        assert_eq!(found(&tree, &["linked/*", "l*", "loop/*.sql"]).unwrap(), [""; 0]);
        assert_eq!(found(&tree, &["**/*.sql"]).unwrap(), ["a.sql", "b.sql", "out/c.sql"]);
    }

    #[test]
    fn a_pipe_or_too_many_files_are_refused() {
        let tree = tree();
        let pipe = tree.path().join("work/pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(found(&tree, &["pipe"]).unwrap_err().contains("is not a file"));
        for number in 0..=ARTIFACT_LIST_BYTES_MAX / LISTED_BYTES {
            fs::write(tree.path().join(format!("work/out/{number}")), "").unwrap();
        }
        assert!(found(&tree, &["out/*"]).unwrap_err().contains("more artifacts"));
    }
}
