//! Who wrote a pipeline file, by the git history it is kept in, for gates that exclude them.
//!
//! Through libgit2 and never the program `git`: what a repository configures is read, not run.
//! What is not certain is unknown: a gate then stays closed.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use git2::{Commit, Config, Delta, DiffFindOptions, ObjectType, Oid, Repository, Sort};
use towpath_engine::gate::{AUTHORS_MAX, email};
use towpath_proto::v1;

/// Longest time that reading a history may take.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Why it is unknown who wrote a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("{}", .0.message())]
    Git(#[from] git2::Error),
    #[error(transparent)]
    File(#[from] io::Error),
    #[error("it is not in a git worktree")]
    NoWorktree,
    #[error("the clone is shallow; fetch the whole history")]
    Shallow,
    #[error("it was never committed")]
    Uncommitted,
    #[error("`{0}` is not a valid e-mail address")]
    Address(String),
    #[error("it has more than {AUTHORS_MAX} authors")]
    TooMany,
    #[error("its history takes longer than {} s to read", TIME_MAX.as_secs())]
    TooLong,
}

/// The authors and committers of every commit that touched the file at `path`, which holds `bytes`
/// now, also under the names it had before.
pub(crate) fn of(path: &Path, bytes: &[u8]) -> Result<v1::Authors, Unknown> {
    let path = fs::canonicalize(path)?;
    let repository = Repository::discover(path.parent().unwrap_or(&path))?;
    let root = fs::canonicalize(repository.workdir().ok_or(Unknown::NoWorktree)?)?;
    let name = path.strip_prefix(&root).map_err(|_| Unknown::NoWorktree)?;
    // The missing part of the history may have more authors, and the gate would open for them.
    if repository.is_shallow() {
        return Err(Unknown::Shallow);
    }
    let head = match repository.head() {
        Err(error) if error.code() == git2::ErrorCode::UnbornBranch => {
            return Err(Unknown::Uncommitted);
        }
        head => head?.peel_to_commit()?,
    };
    let committed = blob_at(&head, name)?.ok_or(Unknown::Uncommitted)?;
    let mut emails = walk(&repository, name)?;
    // The bytes that were parsed are compared, and not the file, which may have changed since.
    let uncommitted = Oid::hash_object(ObjectType::Blob, bytes)? != committed;
    if uncommitted {
        emails.extend(own_emails());
    }
    if emails.len() > AUTHORS_MAX {
        return Err(Unknown::TooMany);
    }
    Ok(v1::Authors { emails: emails.into_iter().collect(), uncommitted })
}

/// The address that git gives to what this user commits, if it can be compared with others.
pub(crate) fn own_emails() -> Vec<String> {
    let here = Repository::discover(".").and_then(|repository| repository.config());
    let config = here.or_else(|_| Config::open_default());
    let own = config.and_then(|mut config| config.snapshot()?.get_string("user.email"));
    own.ok().and_then(|own| email(&own)).into_iter().collect()
}

fn walk(repository: &Repository, name: &Path) -> Result<BTreeSet<String>, Unknown> {
    let begun = Instant::now();
    let mut names = vec![name.to_owned()];
    let mut emails = BTreeSet::new();
    let mut commits = repository.revwalk()?;
    // Children before parents, so that a new name of the file is known before its old one is looked
    // for.
    commits.set_sorting(Sort::TOPOLOGICAL)?;
    commits.push_head()?;
    for commit in commits {
        if begun.elapsed() > TIME_MAX {
            return Err(Unknown::TooLong);
        }
        let commit = repository.find_commit(commit?)?;
        let mut touched = false;
        for at in 0..names.len() {
            let Some(name) = names.get(at).cloned() else { break };
            if !touches(&commit, &name)? {
                continue;
            }
            touched = true;
            let before = renamed_from(repository, &commit, &name)?;
            names.extend(before.filter(|before| !names.contains(before)));
        }
        if touched {
            // Both: a committer can change what the author wrote.
            for who in [commit.author(), commit.committer()] {
                let address = String::from_utf8_lossy(who.email_bytes());
                let known = email(&address);
                emails.insert(known.ok_or_else(|| Unknown::Address(address.into_owned()))?);
            }
        }
        if emails.len() > AUTHORS_MAX {
            return Err(Unknown::TooMany);
        }
    }
    Ok(emails)
}

/// Whether the file is in `commit` another one than in each of its parents.
fn touches(commit: &Commit<'_>, name: &Path) -> Result<bool, git2::Error> {
    let own = blob_at(commit, name)?;
    if commit.parent_count() == 0 {
        return Ok(own.is_some());
    }
    for parent in commit.parents() {
        if blob_at(&parent, name)? == own {
            // A merge that takes the file from one of its parents did not change it.
            return Ok(false);
        }
    }
    Ok(true)
}

fn blob_at(commit: &Commit<'_>, name: &Path) -> Result<Option<Oid>, git2::Error> {
    match commit.tree()?.get_path(name) {
        Ok(entry) => Ok(Some(entry.id())),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the file was called before `commit`, if that gave it its name.
fn renamed_from(
    repository: &Repository,
    commit: &Commit<'_>,
    name: &Path,
) -> Result<Option<PathBuf>, git2::Error> {
    let Some(parent) = commit.parents().next() else { return Ok(None) };
    // The diff for renames reads whole trees, and is needed only where the file appears.
    if blob_at(&parent, name)?.is_some() {
        return Ok(None);
    }
    let (old, new) = (parent.tree()?, commit.tree()?);
    let mut diff = repository.diff_tree_to_tree(Some(&old), Some(&new), None)?;
    diff.find_similar(Some(DiffFindOptions::new().renames(true)))?;
    let mut deltas = diff.deltas();
    let renamed = deltas
        .find(|delta| delta.status() == Delta::Renamed && delta.new_file().path() == Some(name));
    Ok(renamed.and_then(|delta| delta.old_file().path().map(Path::to_owned)))
}

#[cfg(test)]
mod tests {
    use git2::{IndexAddOption, Signature};

    use super::*;

    struct Place {
        folder: tempfile::TempDir,
        repository: Repository,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let repository = Repository::init(folder.path()).unwrap();
            Self { folder, repository }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn writes(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        /// Commits all there is.
        fn commits(&self, author: &str, committer: &str) {
            let signature = |email: &str| Signature::now("somebody", email).unwrap();
            let mut index = self.repository.index().unwrap();
            index.add_all(["*"], IndexAddOption::DEFAULT, None).unwrap();
            index.update_all(["*"], None).unwrap();
            index.write().unwrap();
            let tree = self.repository.find_tree(index.write_tree().unwrap()).unwrap();
            let head = self.repository.head().ok().and_then(|head| head.peel_to_commit().ok());
            let parents: Vec<_> = head.iter().collect();
            let (author, committer) = (signature(author), signature(committer));
            let commit =
                self.repository.commit(Some("HEAD"), &author, &committer, "x", &tree, &parents);
            commit.unwrap();
        }

        fn authors(&self, name: &str) -> Result<v1::Authors, Unknown> {
            of(&self.path(name), &fs::read(self.path(name)).unwrap())
        }
    }

    #[test]
    fn authors_and_committers_of_the_file_are_found_and_no_others() {
        let place = Place::new();
        place.writes("a.yml", "1");
        place.commits("Ana+x@example.org", "bot@example.org");
        place.writes("other", "1");
        place.commits("eve@example.org", "eve@example.org");
        place.writes("a.yml", "2");
        place.commits("bob@example.org", "bob@example.org");

        let found = place.authors("a.yml").unwrap();

        assert_eq!(found.emails, ["ana@example.org", "bob@example.org", "bot@example.org"]);
        assert!(!found.uncommitted);
        place.writes("a.yml", "3");
        assert!(place.authors("a.yml").unwrap().uncommitted);
    }

    #[test]
    fn a_new_author_name_does_not_hide_an_author() {
        let place = Place::new();
        place.writes("old.yml", &"a line\n".repeat(20));
        place.commits("ana@example.org", "ana@example.org");
        fs::rename(place.path("old.yml"), place.path("new.yml")).unwrap();
        place.commits("bob@example.org", "bob@example.org");

        let found = place.authors("new.yml").unwrap();

        assert_eq!(found.emails, ["ana@example.org", "bob@example.org"]);
    }

    #[test]
    fn what_is_not_certain_is_not_known() {
        let place = Place::new();
        place.writes("a.yml", "1");
        assert!(matches!(place.authors("a.yml"), Err(Unknown::Uncommitted)), "no commit at all");
        place.commits("ana", "ana@example.org");
        let strange = place.authors("a.yml");
        assert!(matches!(strange, Err(Unknown::Address(_))), "{strange:?}");
        place.writes("b.yml", "1");
        assert!(matches!(place.authors("b.yml"), Err(Unknown::Uncommitted)));
        let outside = tempfile::NamedTempFile::new().unwrap();
        assert!(of(outside.path(), b"").is_err());
        fs::write(place.path(".git/shallow"), format!("{}\n", "1".repeat(40))).unwrap();
        assert!(place.authors("a.yml").is_err(), "a part of the history is not there");
    }

    #[test]
    fn what_a_repository_configures_is_not_run() {
        let place = Place::new();
        place.writes("a.yml", "1");
        place.writes(".gitattributes", "* filter=trap\n");
        place.commits("ana@example.org", "ana@example.org");
        let trap = place.path("trapped");
        let run = format!("touch {}", trap.display());
        let mut config = place.repository.config().unwrap();
        for key in ["filter.trap.clean", "core.fsmonitor", "gpg.program", "diff.external"] {
            config.set_str(key, &run).unwrap();
        }
        config.set_bool("log.showSignature", true).unwrap();
        place.writes("a.yml", "2");

        assert!(place.authors("a.yml").unwrap().uncommitted);
        assert!(!trap.exists());
    }
}
