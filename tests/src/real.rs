//! A real worker in this process, for jobs that are real processes.

use std::{ffi::OsString, path::Path};

use tokio::task::JoinHandle;
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use towpath_worker::{
    SessionLimits, Stop, WorkResult, WorkerOptions,
    keeper::{self, Program},
    work,
};

use crate::{TestServer, test_server::bounded};

/// Marks a process of a test program that is a keeper.
const AS_KEEPER: &str = "TOWPATH_TEST_KEEPER";
/// The test that such a process runs: each program with real workers has one of this name at its
/// root, and it calls [`keep_scripts_if_asked`].
const KEEPER_TEST: &str = "keeps_the_scripts_of_other_tests";

/// Makes keepers of this test program.
fn use_own_program() {
    let arguments = ["--exact", KEEPER_TEST, "--nocapture"].map(OsString::from).into();
    let path = std::env::current_exe().expect("a test is a program");
    keeper::use_program(Program {
        path,
        arguments,
        variables: vec![(AS_KEEPER.into(), "yes".into())],
    });
}

/// Keeps scripts, if this process was started for that.
pub fn keep_scripts_if_asked() {
    if std::env::var_os(AS_KEEPER).is_some() {
        keeper::serve(std::env::args_os());
    }
}

/// A worker that works until it is told to stop.
#[derive(Debug)]
pub struct RealWorker {
    stop: Stop,
    work: JoinHandle<WorkResult>,
}

impl RealWorker {
    /// Begins to work for `server`. Its own files lie below `folder`.
    pub fn begin(server: &TestServer, name: &str, slots: u32, folder: &Path) -> Self {
        Self::begin_at(server.channel(), name, slots, folder, SessionLimits::default())
    }

    /// Begins to work for the server at the end of `channel`, for as long as `stay` says.
    pub fn begin_at(
        channel: Channel,
        name: &str,
        slots: u32,
        folder: &Path,
        stay: SessionLimits,
    ) -> Self {
        Self::begin_with(channel, (name, slots), folder, stay, None)
    }

    /// Begins to work, with one slot, for a server that is shown `bearer`.
    pub fn begin_as(
        channel: Channel,
        name: &str,
        folder: &Path,
        stay: SessionLimits,
        bearer: Option<MetadataValue<Ascii>>,
    ) -> Self {
        Self::begin_with(channel, (name, 1), folder, stay, bearer)
    }

    fn begin_with(
        channel: Channel,
        (name, slots): (&str, u32),
        folder: &Path,
        stay: SessionLimits,
        bearer: Option<MetadataValue<Ascii>>,
    ) -> Self {
        let options = WorkerOptions {
            job: None,
            name: name.to_owned(),
            slots,
            tags: Vec::new(),
            run: None,
            attempts: folder.join("attempts"),
            bearer,
            file_remotes: false,
            keep_work: false,
            stay,
        };
        use_own_program();
        let stop = Stop::default();
        let work = tokio::spawn(work(channel, options, stop.clone()));
        Self { stop, work }
    }

    /// Tells it to take nothing new.
    pub fn drain(&self) {
        self.stop.drain.cancel();
    }

    /// Lets it die on the spot, like a killed process: what it ran continues.
    pub async fn kill(self) {
        self.work.abort();
        drop(self.work.await);
    }

    /// Waits until it has ended by itself; answers how.
    pub async fn ended(self) -> WorkResult {
        bounded("the end of the worker", self.work).await.expect("the worker does not panic")
    }

    /// Tells it to take nothing new, and waits until what runs has ended and is recorded.
    pub async fn stop(self) {
        self.drain();
        let ended = bounded("the end of the worker", self.work).await;
        ended.expect("the worker does not panic").expect("the worker ends well");
    }
}
