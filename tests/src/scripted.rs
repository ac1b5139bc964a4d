//! A worker that runs nothing: it takes jobs and reports what the story says, through a session
//! like that of any other worker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming, transport::Channel};
use towpath_engine::ids::Digest;
use towpath_proto::{
    time::duration,
    v1::{
        self, failed::Cause, report::Ended, session_request::Message as ToServer,
        session_response::Message as FromServer, workers_service_client::WorkersServiceClient,
    },
};

use crate::test_server::bounded;

/// Messages that may wait on the way to the server.
const QUEUE: usize = 64;
/// Bytes of a file in one message.
const PART_BYTES: usize = 60_000;

/// The end of a job that did what it should.
pub fn succeeded() -> Ended {
    succeeded_with(&[])
}

/// The end of a job that did what it should and tells later jobs something.
pub fn succeeded_with(outputs: &[(&str, &str)]) -> Ended {
    let outputs: BTreeMap<String, String> =
        outputs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Ended::Succeeded(v1::Succeeded { outputs, artifacts: Vec::new() })
}

/// The end of a job whose script ended with `exit_code`.
pub fn failed(exit_code: i32) -> Ended {
    Ended::Failed(v1::Failed { cause: Some(Cause::ExitCode(exit_code)) })
}

/// A session, and the messages that it received and no test has read yet.
#[derive(Debug)]
pub struct ScriptedWorker {
    send: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    welcome: v1::Welcome,
    heartbeats_before: u32,
    assignments: VecDeque<v1::Assignment>,
    cancels: VecDeque<v1::AttemptId>,
    recorded: BTreeSet<(String, String, u32)>,
}

impl ScriptedWorker {
    /// Opens a session and waits for its welcome.
    pub async fn connect(channel: Channel, hello: v1::Hello) -> Result<Self, Status> {
        Self::connect_saying(channel, ToServer::Hello(hello)).await
    }

    /// Opens a session with any first message and waits for its welcome.
    pub async fn connect_saying(channel: Channel, first: ToServer) -> Result<Self, Status> {
        let (send, receive) = mpsc::channel(QUEUE);
        send.send(v1::SessionRequest { message: Some(first) }).await.expect("room for a message");
        let mut client = WorkersServiceClient::new(channel);
        let incoming = client.session(ReceiverStream::new(receive)).await?.into_inner();
        let mut worker = Self {
            send,
            incoming,
            welcome: v1::Welcome::default(),
            heartbeats_before: 0,
            assignments: VecDeque::new(),
            cancels: VecDeque::new(),
            recorded: BTreeSet::new(),
        };
        loop {
            match worker.hear("a welcome").await? {
                FromServer::Welcome(welcome) => {
                    worker.welcome = welcome;
                    return Ok(worker);
                }
                FromServer::Heartbeat(_) => worker.heartbeats_before += 1,
                first @ (FromServer::Assignment(_)
                | FromServer::Cancel(_)
                | FromServer::Recorded(_)) => {
                    panic!("a session begins with a welcome, not with {first:?}")
                }
            }
        }
    }

    /// How many heartbeats came before the welcome.
    pub fn heartbeats_before_welcome(&self) -> u32 {
        self.heartbeats_before
    }

    /// What still counts of what the worker said it holds: `job/attempt` and the length of its
    /// output.
    pub fn held(&self) -> Vec<(String, u64)> {
        let name = |of: &v1::AttemptId| format!("{}/{}", of.job, of.attempt);
        let held = self.welcome.held.iter();
        held.map(|held| (held.attempt.as_ref().map(name).unwrap_or_default(), held.output_bytes))
            .collect()
    }

    /// Says anything at all.
    pub async fn say(&self, message: ToServer) {
        self.send
            .send(v1::SessionRequest { message: Some(message) })
            .await
            .expect("the session is open");
    }

    /// The next job that the worker is given.
    pub async fn take(&mut self) -> v1::Assignment {
        loop {
            if let Some(assignment) = self.assignments.pop_front() {
                return assignment;
            }
            self.sort("an assignment").await.expect("the session continues");
        }
    }

    /// The next job that the worker is given, which must be `job`.
    pub async fn take_job(&mut self, job: &str) -> v1::Assignment {
        let assignment = self.take().await;
        assert_eq!(of(&assignment).job, job, "another job was given out");
        assignment
    }

    /// The next `count` jobs, by name, however they are ordered among themselves.
    pub async fn take_some(&mut self, count: usize) -> BTreeMap<String, v1::Assignment> {
        let mut taken = BTreeMap::new();
        for _ in 0..count {
            let assignment = self.take().await;
            taken.insert(of(&assignment).job, assignment);
        }
        taken
    }

    /// The attempt that the worker is told to end next.
    pub async fn cancelled_job(&mut self) -> v1::AttemptId {
        loop {
            if let Some(cancel) = self.cancels.pop_front() {
                return cancel;
            }
            self.sort("a cancel").await.expect("the session continues");
        }
    }

    /// Sends part of what an attempt printed.
    pub async fn print(&self, assignment: &v1::Assignment, offset: u64, content: &[u8]) {
        let content = content.to_vec().into();
        self.say(ToServer::Output(v1::Output { attempt: Some(of(assignment)), offset, content }))
            .await;
    }

    /// Sends a file that an attempt left behind; answers what the report says of it.
    pub async fn leave(
        &self,
        assignment: &v1::Assignment,
        path: &str,
        content: &[u8],
    ) -> v1::Artifact {
        for (part, offset) in content.chunks(PART_BYTES).zip((0..).step_by(PART_BYTES)) {
            let part = v1::ArtifactPart {
                attempt: Some(of(assignment)),
                path: path.to_owned(),
                content: part.to_vec().into(),
                offset,
            };
            self.say(ToServer::Artifact(part)).await;
        }
        let sha256 = Digest::of(content).to_string();
        let blob = v1::Blob { size: content.len() as u64, sha256 };
        v1::Artifact { path: path.to_owned(), blob: Some(blob) }
    }

    /// Reports how an attempt ended and waits until that is durable.
    pub async fn report(&mut self, assignment: &v1::Assignment, ended: Ended) {
        self.report_printed(assignment, ended, 0).await;
    }

    /// Reports the end of an attempt that printed `output_bytes` and waits until that is durable.
    pub async fn report_printed(
        &mut self,
        assignment: &v1::Assignment,
        ended: Ended,
        output_bytes: u64,
    ) {
        let of = of(assignment);
        self.send_report(&of, ended, output_bytes).await;
        self.until_recorded(&of).await;
    }

    /// Reports the end of an attempt without waiting for an answer.
    pub async fn send_report(&self, of: &v1::AttemptId, ended: Ended, output_bytes: u64) {
        let (of, ended) = (Some(of.clone()), Some(ended));
        self.say(ToServer::Report(v1::Report {
            attempt: of,
            run_time: Some(duration(5)),
            ended,
            output_bytes,
        }))
        .await;
    }

    /// Waits until the server says that the report of `of` is durable.
    pub async fn until_recorded(&mut self, of: &v1::AttemptId) {
        loop {
            if self.recorded.remove(&name(of)) {
                return;
            }
            let what = format!("the receipt of {}/{}", of.job, of.attempt);
            self.sort(&what).await.expect("the session continues");
        }
    }

    /// Takes `job`, which must be next, and lets it succeed.
    pub async fn succeed(&mut self, job: &str) {
        let assignment = self.take_job(job).await;
        self.report(&assignment, succeeded()).await;
    }

    /// Takes `job`, which must be next, and lets it fail with `exit_code`.
    pub async fn fail(&mut self, job: &str, exit_code: i32) {
        let assignment = self.take_job(job).await;
        self.report(&assignment, failed(exit_code)).await;
    }

    /// Takes `count` jobs and lets each succeed, without waiting for one report before the next.
    pub async fn run_all(&mut self, count: usize) {
        let mut taken = Vec::new();
        while taken.len() < count {
            let assignment = self.take().await;
            let of = of(&assignment);
            self.send_report(&of, succeeded(), 0).await;
            taken.push(of);
        }
        for of in &taken {
            self.until_recorded(of).await;
        }
    }

    /// Lets everything succeed until the server closes the session; answers how many there were.
    pub async fn run_until_closed(&mut self) -> usize {
        let mut given = 0;
        loop {
            while let Some(assignment) = self.assignments.pop_front() {
                given += 1;
                self.send_report(&of(&assignment), succeeded(), 0).await;
            }
            if self.sort("anything").await.is_err() {
                return given;
            }
        }
    }

    /// Waits until the server ends the session; answers how.
    pub async fn refusal(&mut self) -> Status {
        loop {
            if let Err(status) = self.sort("the end of the session").await {
                return status;
            }
        }
    }

    async fn sort(&mut self, awaited: &str) -> Result<(), Status> {
        match self.hear(awaited).await? {
            FromServer::Welcome(welcome) => panic!("a second welcome: {welcome:?}"),
            FromServer::Assignment(assignment) => self.assignments.push_back(assignment),
            FromServer::Cancel(cancel) => self.cancels.extend(cancel.attempt),
            FromServer::Recorded(of) => {
                self.recorded.insert(name(&of));
            }
            FromServer::Heartbeat(v1::Heartbeat {}) => {}
        }
        Ok(())
    }

    async fn hear(&mut self, awaited: &str) -> Result<FromServer, Status> {
        match bounded(awaited, self.incoming.next()).await {
            Some(message) => Ok(message?.message.expect("a message says something")),
            None => Err(Status::unavailable("the server closed the session")),
        }
    }
}

/// The attempt that an assignment is about.
fn of(assignment: &v1::Assignment) -> v1::AttemptId {
    assignment.attempt.clone().expect("an assignment names its attempt")
}

fn name(of: &v1::AttemptId) -> (String, String, u32) {
    (of.run.clone(), of.job.clone(), of.attempt)
}
