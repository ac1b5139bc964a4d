//! Makes the folder that an attempt works in: the files of its run at the frozen commit, and what
//! needed jobs left behind. Nothing that arrives is believed before its digest was computed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use git2::{Oid, Repository};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use towpath_engine::{
    ids::{AttemptId, Blob, Digest},
    source::{Origin, Source},
};
use towpath_proto::v1::{self, blobs_service_client::BlobsServiceClient};

use crate::{
    attempt::Needed,
    checkout::{self, TreeProblem},
    install_artifact::{is_plain, place},
    remote,
    source_cache::{Borrowed, SourceCache},
    wire,
};

/// Pauses before a download is retried, in milliseconds: a server may be away for a minute.
const PAUSES_MS: [u64; 8] = [250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 30_000];
/// How long a server may say nothing in the middle of a download.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a pack that are indexed at once.
const INDEXED_BYTES: usize = 1024 * 1024;

/// A folder that is ready to be worked in.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The root of the source.
    pub(crate) root: PathBuf,
    /// Where the script runs.
    pub(crate) folder: PathBuf,
}

/// Why there is no folder.
#[derive(Debug)]
pub(crate) enum PrepareError {
    /// It was cancelled.
    Cancelled,
    /// It cannot be made; why.
    Because(String),
}

impl From<String> for PrepareError {
    fn from(why: String) -> Self {
        Self::Because(why)
    }
}

/// Where folders are made, and who is asked for what goes into them.
#[derive(Debug)]
pub(crate) struct Workspaces {
    pub(crate) sources: SourceCache,
    pub(crate) channel: Channel,
    pub(crate) bearer: Option<MetadataValue<Ascii>>,
    /// The name of the worker.
    pub(crate) worker: String,
    /// Whether remotes may be repositories of this machine.
    pub(crate) file_remotes: bool,
    /// Whether the folders of failed attempts are kept.
    pub(crate) keep_work: bool,
}

impl Workspaces {
    /// Makes the new folder `root` for the attempt `of`, unless `cancel` comes first.
    pub(crate) async fn prepare(
        &self,
        of: &AttemptId,
        needed: Needed,
        root: PathBuf,
        cancel: &CancellationToken,
    ) -> Result<Prepared, PrepareError> {
        let Needed { source, files, left_out } = needed;
        if left_out > 0 {
            return Err(PrepareError::Because(format!(
                "the needed jobs left {left_out} files more than can be handed on"
            )));
        }
        let source = source_of(source)?;
        self.unpack(of, &source, &root, cancel).await?;
        let folder = root.join(&source.folder);
        if !is_plain(&root, &source.folder) {
            let folder = source.folder.escape_debug();
            return Err(format!("the commit has no folder `{folder}`").into());
        }
        let placing = self.bring(of, files, &folder);
        or_cancelled(cancel, placing).await?;
        Ok(Prepared { root, folder })
    }

    /// Writes the files of `source` to `root`. A copy that turns out to be damaged is fetched
    /// again.
    async fn unpack(
        &self,
        of: &AttemptId,
        source: &Source,
        root: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), PrepareError> {
        let commit = Oid::from_str(&source.commit)
            .map_err(|_| format!("git knows no commit `{}`", source.commit))?;
        let mut again = true;
        loop {
            let repository = or_cancelled(cancel, self.repository(of, source)).await?;
            let (path, root, stop) = (repository.path.clone(), root.to_owned(), cancel.clone());
            let written = blocking(move || {
                let opened = Repository::open_bare(&path).map_err(TreeProblem::from);
                let written =
                    opened.and_then(|opened| checkout::write(&opened, commit, &root, &stop));
                if written.is_err() {
                    drop(fs::remove_dir_all(&root));
                }
                Ok(written)
            })
            .await?;
            match written {
                Ok(()) => return Ok(()),
                Err(TreeProblem::Stopped) => return Err(PrepareError::Cancelled),
                Err(TreeProblem::Unreadable(_)) if again => {
                    again = false;
                    drop(repository);
                    let name = name_of(source);
                    let _making = self.sources.lock(&name).await;
                    self.sources.discard(&name);
                }
                Err(problem) => {
                    return Err(format!("the files of the run cannot be used: {problem}").into());
                }
            }
        }
    }

    /// The repository that holds the commit of `source`. Made if it is not there yet.
    async fn repository(&self, of: &AttemptId, source: &Source) -> Result<Borrowed, String> {
        let name = name_of(source);
        let _making = self.sources.lock(&name).await;
        if let Some(found) = self.sources.find(&name) {
            return Ok(found);
        }
        let told = |error: io::Error| format!("the folder of sources cannot be used: {error}");
        let made = self.sources.scratch_folder().map_err(told)?;
        let path = made.path().to_owned();
        match &source.origin {
            Origin::Bundle(bundle) => {
                let pack = self.fetch(of, bundle).await;
                let pack = pack.map_err(|why| format!("the bundle of the run {why}"))?;
                blocking(move || index(&path, &pack)).await?;
            }
            Origin::Remote(address) => {
                let at = path.clone();
                blocking(move || Repository::init_bare(&at).map_err(said).map(drop)).await?;
                let fetched =
                    remote::fetch(&path, address, &source.commit, self.file_remotes).await;
                fetched.map_err(|why| {
                    let commit = &source.commit;
                    format!("commit {commit} cannot be fetched from `{address}`: {why}")
                })?;
            }
        }
        self.sources.keep(made, &name).map_err(told)
    }

    /// Puts what needed jobs left behind below `folder`.
    async fn bring(
        &self,
        of: &AttemptId,
        files: Vec<v1::NeededFile>,
        folder: &Path,
    ) -> Result<(), String> {
        let mut by_path: BTreeMap<String, (String, Blob)> = BTreeMap::new();
        for v1::NeededFile { job, path, blob } in files {
            let blob = blob_of(blob)?;
            match by_path.entry(path) {
                Entry::Vacant(place) => drop(place.insert((job, blob))),
                Entry::Occupied(taken) if taken.get().1 == blob => {}
                Entry::Occupied(taken) => {
                    let (path, other) = (taken.key().escape_debug(), &taken.get().0);
                    return Err(format!(
                        "the needed jobs `{other}` and `{job}` both left `{path}`, and not the same"
                    ));
                }
            }
        }
        for (path, (job, blob)) in by_path {
            let told =
                |why: String| format!("the artifact `{}` of `{job}` {why}", path.escape_debug());
            let file = self.fetch(of, &blob).await.map_err(told)?;
            place(folder, &path, file.path())?;
            // It lies elsewhere now.
            drop(file.into_temp_path().keep());
        }
        Ok(())
    }

    /// A blob, in a file that goes with its handle. A server that is away is waited for.
    async fn fetch(&self, of: &AttemptId, blob: &Blob) -> Result<NamedTempFile, String> {
        let mut pauses = PAUSES_MS.into_iter();
        loop {
            let status = match self.fetch_once(of, blob).await {
                Ok(file) => return Ok(file),
                Err(Unfetched::Status(status)) => status,
                Err(Unfetched::Because(why)) => return Err(why),
            };
            let pause = pauses.next().filter(|_| is_passing(&status));
            let Some(pause) = pause else {
                return Err(format!("cannot be fetched: {}", status.message()));
            };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn fetch_once(&self, of: &AttemptId, blob: &Blob) -> Result<NamedTempFile, Unfetched> {
        let (worker, sha256) = (self.worker.clone(), blob.sha256.to_string());
        let of = Some(wire::attempt_message(of));
        let mut request = Request::new(v1::FetchBlobRequest { attempt: of, worker, sha256 });
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        let mut client = BlobsServiceClient::new(self.channel.clone());
        let opened = in_time(client.fetch_blob(request)).await?;
        let file = self.sources.scratch_file().map_err(unwritable)?;
        receive(opened.into_inner(), blob, file).await
    }
}

/// Writes what comes into `file`, if it is `blob` and nothing else.
async fn receive(
    mut chunks: impl Stream<Item = Result<v1::FetchBlobResponse, Status>> + Unpin,
    blob: &Blob,
    mut file: NamedTempFile,
) -> Result<NamedTempFile, Unfetched> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(chunk) = in_time(async { chunks.next().await.transpose() }).await? {
        size += chunk.content.len() as u64;
        if size > blob.size {
            break;
        }
        hash.update(&chunk.content);
        file.write_all(&chunk.content).map_err(unwritable)?;
    }
    if (Blob { size, sha256: Digest(hash.finalize().into()) }) == *blob {
        return Ok(file);
    }
    Err(Unfetched::Because("did not arrive with the bytes of its digest".to_owned()))
}

/// The answer, unless the server stops sending.
async fn in_time<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let silent = |_| Status::unavailable("the server stopped sending");
    tokio::time::timeout(SILENCE_MAX, answer).await.map_err(silent)?
}

fn unwritable(error: io::Error) -> Unfetched {
    Unfetched::Because(format!("cannot be written on this worker: {error}"))
}

/// Why a download did not come to its end.
enum Unfetched {
    Status(Box<Status>),
    Because(String),
}

impl From<Status> for Unfetched {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// Whether a server that answers so may answer otherwise in a while.
fn is_passing(status: &Status) -> bool {
    let passing = [
        Code::Unavailable,
        Code::Unknown,
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::Internal,
    ];
    passing.contains(&status.code())
}

/// Makes a repository at `path` of what `pack` holds. Every object is hashed again on the way.
fn index(path: &Path, pack: &NamedTempFile) -> Result<(), String> {
    let repository = Repository::init_bare(path).map_err(said)?;
    let odb = repository.odb().map_err(said)?;
    let mut writer = odb.packwriter().map_err(said)?;
    let mut read = io::BufReader::with_capacity(INDEXED_BYTES, pack.reopen().map_err(told)?);
    io::copy(&mut read, &mut writer).map_err(told)?;
    writer.commit().map_err(said)?;
    Ok(())
}

fn said(error: git2::Error) -> String {
    format!("the files of the run cannot be used: {}", error.message())
}

fn told(error: io::Error) -> String {
    format!("the files of the run cannot be used: {error}")
}

/// What a source is called among the sources.
fn name_of(source: &Source) -> String {
    match &source.origin {
        Origin::Bundle(bundle) => bundle.sha256.to_string(),
        Origin::Remote(address) => {
            Digest::of(format!("{address}\n{}", source.commit).as_bytes()).to_string()
        }
    }
}

fn source_of(sent: v1::Source) -> Result<Source, String> {
    use v1::source::Origin as Sent;
    let v1::Source { commit, origin, folder, parent, dirty } = sent;
    let origin = match origin.ok_or("the source of the run has no origin")? {
        Sent::Bundle(bundle) => Origin::Bundle(blob_of(Some(bundle))?),
        Sent::Remote(address) => Origin::Remote(address),
    };
    let parent = (!parent.is_empty()).then_some(parent);
    let source = Source { commit, origin, folder, parent, dirty };
    source.problem().map_or(Ok(source), Err)
}

fn blob_of(blob: Option<v1::Blob>) -> Result<Blob, String> {
    let v1::Blob { size, sha256 } = blob.ok_or("a file without a name was sent")?;
    let sha256 = sha256.parse().map_err(|error| format!("a file has no name: {error}"))?;
    Ok(Blob { size, sha256 })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

async fn or_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, PrepareError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(PrepareError::Cancelled),
        done = work => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;
    use towpath_engine::ids::Attempt;

    use super::*;

    /// Workspaces whose server takes calls and never answers.
    fn workspaces(folder: &Path) -> (Workspaces, std::net::TcpListener) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let workspaces = Workspaces {
            sources: SourceCache::open(&folder.join("sources"), 1_000).unwrap(),
            channel: Endpoint::from_shared(address).unwrap().connect_lazy(),
            bearer: None,
            worker: "w".to_owned(),
            file_remotes: true,
            keep_work: false,
        };
        (workspaces, listener)
    }

    fn needed() -> Needed {
        let bundle = v1::Blob { size: 4, sha256: Digest::of(b"pack").to_string() };
        let origin = Some(v1::source::Origin::Bundle(bundle));
        let source = v1::Source { commit: "a".repeat(40), origin, ..Default::default() };
        Needed { source, files: Vec::new(), left_out: 0 }
    }

    async fn prepare(folder: &Path, needed: Needed, cancel: &CancellationToken) -> PrepareError {
        let (workspaces, _listener) = workspaces(folder);
        let of = AttemptId { run: "r".into(), job: "a".into(), attempt: Attempt(1) };
        let preparing = workspaces.prepare(&of, needed, folder.join("root"), cancel);
        let prepared = tokio::time::timeout(Duration::from_secs(10), preparing).await;
        prepared.expect("it comes to its end").unwrap_err()
    }

    #[tokio::test]
    async fn a_cancel_ends_the_wait_for_a_server_that_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let preparing = prepare(folder.path(), needed(), &cancel);
        let cancelling = async {
            tokio::task::yield_now().await;
            cancel.cancel();
        };

        let (unprepared, ()) = tokio::join!(preparing, cancelling);

        assert!(matches!(unprepared, PrepareError::Cancelled), "{unprepared:?}");
        assert_eq!(fs::read_dir(folder.path().join("sources")).unwrap().count(), 0);
        assert!(!folder.path().join("root").exists());
    }

    #[tokio::test]
    async fn a_source_that_does_not_come_holds_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (workspaces, _listener) = workspaces(folder.path());
        let of = AttemptId { run: "r".into(), job: "a".into(), attempt: Attempt(1) };
        let slow = source_of(needed().source).unwrap();
        let there = Source { origin: Origin::Bundle(Blob::of(b"another")), ..slow.clone() };
        let made = workspaces.sources.scratch_folder().unwrap();
        drop(workspaces.sources.keep(made, &name_of(&there)).unwrap());

        let either = async {
            tokio::select! {
                biased;
                _ = workspaces.repository(&of, &slow) => unreachable!("the server never answers"),
                found = workspaces.repository(&of, &there) => found,
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), either).await;

        found.expect("it is there").unwrap();
    }

    #[tokio::test]
    async fn what_does_not_have_the_bytes_of_its_digest_is_not_taken() {
        let blob = Blob::of(b"the right bytes");
        let receive = async |pieces: &[&'static [u8]]| {
            let chunk =
                |piece: &&'static [u8]| Ok(v1::FetchBlobResponse { content: (*piece).into() });
            let chunks: Vec<_> = pieces.iter().map(chunk).collect();
            let file = NamedTempFile::new().unwrap();
            receive(tokio_stream::iter(chunks), &blob, file).await
        };

        let file = receive(&[b"the right", b"", b" bytes"]).await.ok().unwrap();
        assert_eq!(fs::read(file.path()).unwrap(), b"the right bytes");
        for wrong in [
            &[b"the wrong bytes".as_slice()][..],
            &[b"the right byte"],
            &[],
            &[b"the right bytes", b"!"],
        ] {
            assert!(matches!(receive(wrong).await, Err(Unfetched::Because(_))), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn what_a_server_sends_is_looked_at_before_anything_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let remote = |address: &str| Some(v1::source::Origin::Remote(address.to_owned()));
        for (needed, expected) in [
            (Needed { left_out: 7, ..needed() }, "left 7 files more"),
            (
                Needed {
                    source: v1::Source { folder: "../..".to_owned(), ..needed().source },
                    ..needed()
                },
                "the folder of the source leads out",
            ),
            (
                Needed {
                    source: v1::Source { origin: remote("ext::id"), ..needed().source },
                    ..needed()
                },
                "the address of the remote is neither",
            ),
            (
                Needed {
                    source: v1::Source { commit: "--help".to_owned(), ..needed().source },
                    ..needed()
                },
                "a commit is named by",
            ),
        ] {
            let why = prepare(folder.path(), needed, &CancellationToken::new()).await;
            let PrepareError::Because(why) = why else { panic!("{why:?}") };
            assert!(why.contains(expected), "{why}");
        }
    }
}
