//! The files of a run, made ready to travel: the pipeline's repository at its commit, or its folder
//! as it is, as one pack; or the address of a remote that has the commit.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
    time::Duration,
};

use git2::{
    Commit, ErrorCode as GitErrorCode, Index, IndexEntry, IndexTime, Oid, Repository, Signature,
    Status, StatusOptions, Time,
};
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use towpath_engine::code::ErrorCode;
use towpath_engine::{
    ids::Digest,
    source::{
        BUNDLE_BYTES_MAX, SOURCE_BYTES_MAX, SOURCE_FILE_BYTES_MAX, SOURCE_FILES_MAX, remote_problem,
    },
};
use towpath_proto::v1::{self, put_blob_request::Part, source::Origin};
use towpath_worker::{
    checkout::{Entry, TreeProblem, survey},
    remote::git,
};

use crate::{app::App, commands::pipeline::Pipeline, connect::ServerConnection, failure::Failure};

/// Where workers take the files of a run from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SourceKind {
    /// A bundle if the server was named with `--server`, else the folder
    Auto,
    /// The pipeline's folder, which every worker must have under the same name
    Folder,
    /// A bundle of the commit that is checked out, or of the folder outside of git
    Bundle,
    /// The commit that is checked out, from the repository's remote
    Remote,
}

/// What is said about the files of a run.
#[derive(Debug, clap::Args)]
pub(crate) struct SourceArgs {
    /// Where workers take the pipeline's files from
    #[arg(long, value_enum, default_value = "auto", value_name = "KIND")]
    source: SourceKind,
    /// Bundle the files as they are, with changes that are not committed
    #[arg(long)]
    allow_dirty: bool,
}

impl SourceArgs {
    /// The files of `pipeline`, for the workers of a server, which may be elsewhere. `None`: they
    /// share its folder.
    pub(crate) async fn take(
        &self,
        app: &App,
        is_remote: bool,
        pipeline: &Pipeline,
    ) -> Result<Option<Taken>, Failure> {
        let kind = match self.source {
            SourceKind::Auto if is_remote => SourceKind::Bundle,
            SourceKind::Auto => SourceKind::Folder,
            named @ (SourceKind::Folder | SourceKind::Bundle | SourceKind::Remote) => named,
        };
        take(app, kind, self.allow_dirty, pipeline).await
    }
}

/// The files of `pipeline` as `kind` says. `None`: workers share its folder.
pub(crate) async fn take(
    app: &App,
    kind: SourceKind,
    allow_dirty: bool,
    pipeline: &Pipeline,
) -> Result<Option<Taken>, Failure> {
    match kind {
        SourceKind::Auto | SourceKind::Folder => Ok(None),
        SourceKind::Bundle => Draft::of(pipeline, allow_dirty)?.bundle().map(Some),
        // Never dirty: workers fetch the commit, and no uncommitted file is in it.
        SourceKind::Remote => Draft::of(pipeline, false)?.remote(app).await.map(Some),
    }
}

/// The files of a run, and the pack of them if there is one.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) source: v1::Source,
    pack: Option<NamedTempFile>,
}

impl Taken {
    /// Sends the pack, unless the server has it.
    pub(crate) async fn send(&self, app: &App, server: &ServerConnection) -> Result<(), Failure> {
        let (Some(pack), Some(Origin::Bundle(blob))) = (&self.pack, &self.source.origin) else {
            return Ok(());
        };
        let asked = v1::FindBlobRequest { blob: Some(blob.clone()) };
        // The same commit is sent once, however many runs use it.
        if server.blobs().find_blob(asked).await?.into_inner().found {
            return Ok(());
        }
        let mut file = pack.reopen()?;
        let (parts, stream) = mpsc::channel(PARTS);
        let first = Part::Blob(blob.clone());
        // Files are read by a thread of their own, and the channel keeps it a few parts ahead of
        // the network.
        tokio::task::spawn_blocking(move || {
            let mut next = Some(first);
            while let Some(part) = next.take() {
                if parts.blocking_send(v1::PutBlobRequest { part: Some(part) }).is_err() {
                    return;
                }
                let mut content = Vec::with_capacity(PART_BYTES);
                // What cannot be read any more is missed at the other end.
                let read = (&mut file).take(PART_BYTES as u64).read_to_end(&mut content);
                next = read.is_ok_and(|read| read > 0).then(|| Part::Content(content.into()));
            }
        });
        let mut blobs = server.blobs();
        let sending = blobs.put_blob(ReceiverStream::new(stream));
        tokio::pin!(sending);
        tokio::select! {
            sent = &mut sending => drop(sent?),
            () = tokio::time::sleep(SAY_AFTER) => {
                app.say(&format!("Sending {} of files to the server.", mib(blob.size)));
                sending.await?;
            }
        }
        Ok(())
    }
}

/// Bytes of a pack in one message.
const PART_BYTES: usize = 64 * 1024;
/// Messages that may wait for the server.
const PARTS: usize = 16;
/// How long sending may take before a progress line is printed.
const SAY_AFTER: Duration = Duration::from_secs(1);
/// Paths that are named when something is wrong with many.
const NAMED_MAX: usize = 5;
/// The folder of a store, which never travels.
const STORE_FOLDER: &str = ".towpath";

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

/// A commit of the files, in a repository of its own that borrows what the real one has.
struct Draft {
    scratch: TempDir,
    /// The pipeline's repository. `None`: it is in none.
    origin: Option<Repository>,
    commit: Oid,
    parent: Option<Oid>,
    /// The pipeline's folder below the root.
    folder: String,
    dirty: bool,
}

impl Draft {
    fn of(pipeline: &Pipeline, allow_dirty: bool) -> Result<Self, Failure> {
        let scratch = tempfile::tempdir()?;
        // Objects of the made-up commit are written here, so that the person's repository is never
        // changed.
        let own = Repository::init_bare(scratch.path()).map_err(unusable)?;
        let origin = match Repository::discover(&pipeline.folder) {
            Ok(origin) => Some(origin),
            Err(error) if error.code() == GitErrorCode::NotFound => None,
            Err(error) => return Err(unusable(error)),
        };
        let root = match origin.as_ref().map(Repository::workdir) {
            Some(Some(root)) => root.canonicalize()?,
            Some(None) => return Err(refused("the repository of the pipeline has no files")),
            None => pipeline.folder.clone(),
        };
        let folder = pipeline.folder.strip_prefix(&root).ok().and_then(Path::to_str);
        let folder =
            folder.ok_or_else(|| refused("the pipeline's folder is not UTF-8"))?.to_owned();
        let head = origin.as_ref().map(head_of).transpose()?.flatten();
        let changes = if let Some(origin) = &origin {
            let objects = origin.commondir().join("objects");
            let objects = objects.to_str().ok_or_else(|| refused("the repository is not UTF-8"))?;
            // Reads the existing objects where they are, instead of copying a whole repository.
            own.odb().and_then(|odb| odb.add_disk_alternate(objects)).map_err(unusable)?;
            changes(origin, &folder)?
        } else {
            own.set_workdir(&root, false).map_err(unusable)?;
            changes(&own, "")?
        };
        // Outside of git there is nothing to compare with, and nothing is dirty.
        let dirty = origin.is_some() && (!changes.is_empty() || head.is_none());
        if dirty && !allow_dirty {
            return Err(dirty_failure(&changes));
        }
        let (commit, parent) = match &head {
            Some(head) if !dirty => (head.id(), None),
            head => {
                let made = made_up(&own, &root, head.as_ref(), &changes)?;
                (made, head.as_ref().map(Commit::id))
            }
        };
        drop(head);
        let draft = Self { scratch, origin, commit, parent, folder, dirty };
        // A pipeline file that git ignores would run here and be missing on every worker.
        draft.has_pipeline(&own, pipeline, allow_dirty)?;
        Ok(draft)
    }

    /// The pipeline file of a run must be among its files.
    fn has_pipeline(
        &self,
        own: &Repository,
        pipeline: &Pipeline,
        allow_dirty: bool,
    ) -> Result<(), Failure> {
        let path = fs::canonicalize(&pipeline.name).unwrap_or_default();
        let name = path.file_name().unwrap_or_default();
        let tree =
            own.find_commit(self.commit).and_then(|commit| commit.tree()).map_err(unusable)?;
        if tree.get_path(&Path::new(&self.folder).join(name)).is_ok() {
            return Ok(());
        }
        if allow_dirty || self.origin.is_none() {
            return Err(refused(format!("git ignores `{}`", pipeline.name)));
        }
        Err(dirty_failure(std::slice::from_ref(&pipeline.name)))
    }

    /// What the commit holds, if workers will take it.
    fn entries(&self, own: &Repository) -> Result<Vec<Entry>, Failure> {
        let tree = own.find_commit(self.commit).map_err(unusable)?.tree_id();
        survey(own, tree).map_err(|problem| problem_failure(&problem))
    }

    fn own(&self) -> Result<Repository, Failure> {
        Repository::open_bare(self.scratch.path())
            .and_then(|own| {
                if let Some(origin) = &self.origin {
                    let objects = origin.commondir().join("objects");
                    own.odb()?.add_disk_alternate(&objects.to_string_lossy())?;
                }
                Ok(own)
            })
            .map_err(unusable)
    }

    fn bundle(self) -> Result<Taken, Failure> {
        let own = self.own()?;
        let entries = self.entries(&own)?;
        let mut pack = NamedTempFile::new()?;
        let mut builder = own.packbuilder().map_err(unusable)?;
        // With one thread the same files are the same bytes, and sent once.
        builder.set_threads(1);
        builder.insert_commit(self.commit).map_err(unusable)?;
        let (mut hash, mut size, mut unwritten) = (Sha256::new(), 0, None);
        let done = builder.foreach(|piece| {
            size += piece.len() as u64;
            hash.update(piece);
            // The callback can only stop the packing; the error itself is kept for the message.
            if let Err(error) = pack.write_all(piece) {
                unwritten = Some(error);
            }
            size <= BUNDLE_BYTES_MAX && unwritten.is_none()
        });
        if let Some(error) = unwritten {
            return Err(error.into());
        }
        if size > BUNDLE_BYTES_MAX {
            return Err(pack_too_large(&entries));
        }
        done.map_err(unusable)?;
        let sha256 = Digest(hash.finalize().into());
        let blob = v1::Blob { size, sha256: sha256.to_string() };
        let source = self.source(Origin::Bundle(blob));
        Ok(Taken { source, pack: Some(pack) })
    }

    async fn remote(self, app: &App) -> Result<Taken, Failure> {
        let Some(origin) = &self.origin else {
            return Err(refused("the pipeline is not in a git repository, so it has no remote"));
        };
        self.entries(&self.own()?)?;
        let address = address_of(origin)?;
        if let Some(why) = remote_problem(&address) {
            return Err(refused(format!("the address of the remote {why}")));
        }
        let commit = self.commit.to_string();
        // Only a warning: many servers allow to fetch a commit that no branch points to.
        let listed =
            git(true).args(["ls-remote", "--quiet", "--end-of-options", &address]).output().await;
        let has_it = listed.is_ok_and(|listed| {
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            text.lines().any(|line| line.starts_with(&commit))
        });
        if !has_it {
            app.say(&format!(
                "No branch or tag of {address} is at {commit}: workers may not find it there."
            ));
        }
        let source = self.source(Origin::Remote(address));
        Ok(Taken { source, pack: None })
    }

    fn source(&self, origin: Origin) -> v1::Source {
        v1::Source {
            commit: self.commit.to_string(),
            origin: Some(origin),
            folder: self.folder.clone(),
            parent: self.parent.map(|parent| parent.to_string()).unwrap_or_default(),
            dirty: self.dirty,
        }
    }
}

/// The commit that is checked out. `None`: there is none yet.
fn head_of(origin: &Repository) -> Result<Option<Commit<'_>>, Failure> {
    match origin.head().and_then(|head| head.peel_to_commit()) {
        Ok(head) => Ok(Some(head)),
        Err(error)
            if matches!(error.code(), GitErrorCode::UnbornBranch | GitErrorCode::NotFound) =>
        {
            Ok(None)
        }
        Err(error) => Err(unusable(error)),
    }
}

/// What differs from the commit: everything that is tracked, and what is new below `folder`.
fn changes(repository: &Repository, folder: &str) -> Result<Vec<String>, Failure> {
    let mut options = StatusOptions::new();
    options.include_untracked(true).recurse_untracked_dirs(true).exclude_submodules(true);
    let statuses = repository.statuses(Some(&mut options)).map_err(unusable)?;
    let mut paths = Vec::new();
    for entry in statuses.iter() {
        let Ok(path) = entry.path() else {
            let path = String::from_utf8_lossy(entry.path_bytes()).into_owned();
            return Err(refused(format!("`{}` is not UTF-8", path.escape_debug())));
        };
        let of_store = path.split('/').any(|part| part == STORE_FOLDER);
        // New files outside of the pipeline's folder are usually the person's own notes and build
        // results.
        let elsewhere = entry.status() == Status::WT_NEW && !Path::new(path).starts_with(folder);
        if !of_store && !elsewhere {
            paths.push(path.to_owned());
        }
    }
    if paths.len() > SOURCE_FILES_MAX {
        return Err(problem_failure(&TreeProblem::TooMany));
    }
    Ok(paths)
}

/// A commit of `head` with `changes`. Everything about it but the files is always the same.
fn made_up(
    own: &Repository,
    root: &Path,
    head: Option<&Commit<'_>>,
    changes: &[String],
) -> Result<Oid, Failure> {
    let mut index = Index::new().map_err(unusable)?;
    if let Some(head) = head {
        head.tree().and_then(|tree| index.read_tree(&tree)).map_err(unusable)?;
    }
    let found = |path: &String| fs::symlink_metadata(root.join(path)).ok();
    for path in changes.iter().filter(|path| found(path).is_none()) {
        index.remove_path(Path::new(path)).map_err(unusable)?;
    }
    let mut bytes = 0;
    for (path, metadata) in changes.iter().filter_map(|path| Some((path, found(path)?))) {
        let at = root.join(path);
        let (id, mode) = if metadata.is_symlink() {
            (own.blob(fs::read_link(&at)?.as_os_str().as_bytes()), 0o120_000)
        } else if metadata.is_file() {
            bytes += metadata.len();
            too_large(path, metadata.len(), bytes)
                .map_or(Ok(()), |problem| Err(problem_failure(&problem)))?;
            let is_program = metadata.permissions().mode() & 0o100 != 0;
            (own.blob_path(&at), if is_program { 0o100_755 } else { 0o100_644 })
        } else {
            return Err(problem_failure(&TreeProblem::Submodule { path: path.clone() }));
        };
        let entry = IndexEntry {
            // All fields but the content are constant, so that the same files give the same commit
            // and the same bundle.
            ctime: IndexTime::new(0, 0),
            mtime: IndexTime::new(0, 0),
            dev: 0,
            ino: 0,
            mode,
            uid: 0,
            gid: 0,
            file_size: 0,
            id: id.map_err(unusable)?,
            flags: 0,
            flags_extended: 0,
            path: path.clone().into_bytes(),
        };
        index.add(&entry).map_err(unusable)?;
    }
    // No name and no date, for the same reason; and the commit of a run has no author of its own.
    let unnamed = Signature::new("towpath", "towpath@invalid", &Time::new(0, 0));
    let unnamed = unnamed.map_err(unusable)?;
    let tree = index.write_tree_to(own).and_then(|tree| own.find_tree(tree)).map_err(unusable)?;
    own.commit(None, &unnamed, &unnamed, "the files of a run", &tree, &[]).map_err(unusable)
}

/// Looked at before a file is read: what will be refused is not compressed first.
fn too_large(path: &str, own: u64, all: u64) -> Option<TreeProblem> {
    if own > SOURCE_FILE_BYTES_MAX {
        return Some(TreeProblem::FileTooLarge { path: path.to_owned(), bytes: own });
    }
    (all > SOURCE_BYTES_MAX).then_some(TreeProblem::TooLarge)
}

/// The address of the remote that the branch goes to, else of `origin`.
fn address_of(repository: &Repository) -> Result<String, Failure> {
    let head = repository.head().map_err(unusable)?;
    let name = head.name().map_err(unusable)?;
    let remote = repository.branch_upstream_remote(name).ok();
    let remote = remote.as_ref().and_then(|name| name.as_str().ok()).unwrap_or("origin");
    let found = repository.find_remote(remote);
    let found = found.map_err(|_| refused(format!("the repository has no remote `{remote}`")))?;
    found.url().map(str::to_owned).map_err(unusable)
}

fn named(paths: &[String]) -> String {
    let shown = paths.iter().take(NAMED_MAX).map(|path| format!("`{path}`"));
    let mut shown: Vec<String> = shown.collect();
    if paths.len() > NAMED_MAX {
        shown.push(format!("and {} more", paths.len() - NAMED_MAX));
    }
    shown.join(", ")
}

fn dirty_failure(paths: &[String]) -> Failure {
    let message = format!("not everything is committed: {}", named(paths));
    let advice = "Commit or ignore it, or send it along with `--source bundle --allow-dirty`.";
    Failure::new(ErrorCode::SourceDirty, message, advice)
}

fn pack_too_large(entries: &[Entry]) -> Failure {
    let mut by_size: Vec<&Entry> = entries.iter().collect();
    by_size.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));
    let largest = by_size.iter().take(NAMED_MAX);
    let largest: Vec<String> =
        largest.map(|entry| format!("{} ({})", entry.path, mib(entry.bytes))).collect();
    let message = format!(
        "the bundle would have more than {}; the largest files: {}",
        mib(BUNDLE_BYTES_MAX),
        named(&largest)
    );
    Failure::new(ErrorCode::SourceTooLarge, message, TOO_LARGE_ADVICE)
}

const TOO_LARGE_ADVICE: &str =
    "Leave large files out with `.gitignore`, or use `--source remote` or `--source folder`.";

fn problem_failure(problem: &TreeProblem) -> Failure {
    let message = problem.to_string();
    match problem {
        TreeProblem::Link { .. } => {
            let advice = "Put what it points to into the repository, or use `--source folder`.";
            Failure::new(ErrorCode::SourceLink, message, advice)
        }
        TreeProblem::TooMany | TreeProblem::FileTooLarge { .. } | TreeProblem::TooLarge => {
            Failure::new(ErrorCode::SourceTooLarge, message, TOO_LARGE_ADVICE)
        }
        TreeProblem::Path { .. }
        | TreeProblem::Submodule { .. }
        | TreeProblem::Unreadable(_)
        | TreeProblem::Unwritable { .. }
        | TreeProblem::Stopped => refused(message),
    }
}

fn refused(message: impl Into<String>) -> Failure {
    let advice = "Correct it, or use `--source folder` if every worker has the folder.";
    Failure::new(ErrorCode::SourceUnusable, message, advice)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
fn unusable(error: git2::Error) -> Failure {
    refused(format!("git cannot read the pipeline's files: {}", error.message()))
}
