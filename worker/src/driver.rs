//! Drives the worker's state machine: connections, time, files and scripts. Decides nothing.

use std::{future::pending, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use towpath_proto::v1::{
    self, session_request::Message as ToServer, workers_service_client::WorkersServiceClient,
};

use crate::{
    Adopted, ConnectionState, Stop, WorkerOptions,
    attempt::{Event, Job},
    protocol::{
        Cause, ConnectionId, Effect, EndReason, Greeting, Input, Message, Notice, Outage,
        PART_BYTES, Protocol, Settings,
    },
    reads::{READ_WITHIN, ReadDone, Reads},
    runner::Runner,
    wire,
};

/// Messages to the server that may wait for the connection: a MiB of output at most. What does not
/// fit waits on disk, and is read when there is room.
const OUTGOING_MAX: usize = 1024 * 1024 / PART_BYTES as usize;

/// A worker at work.
pub(crate) struct Driver {
    protocol: Protocol<Job>,
    runner: Runner,
    events: mpsc::Receiver<Event>,
    client: WorkersServiceClient<Channel>,
    options: WorkerOptions,
    instance: String,
    stop: Stop,
    /// The time of the state machine is measured from here.
    began: Instant,
    connection: Option<Connection>,
    /// What is read from a disk to be sent.
    reads: Reads,
    /// A disk that failed is being looked at.
    checking: Option<JoinHandle<bool>>,
    /// Orders to stop, and a disk that failed, as far as the state machine knows.
    drained: bool,
    killed: bool,
    disk_failed: bool,
    /// Why there was no session.
    status: Status,
    stopped: Option<EndReason>,
}

/// A connection to the server, open or being opened.
struct Connection {
    id: ConnectionId,
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Incoming,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<v1::SessionResponse>, Status>> + Send>>;

enum Incoming {
    Opening(Opening),
    Open(Box<Streaming<v1::SessionResponse>>),
}

/// What a driver waits for.
#[expect(clippy::large_enum_variant, reason = "there is one, on the stack, and none is kept")]
enum DriverEvent {
    Received(Result<v1::SessionResponse, Status>),
    Attempt(Event),
    Read(ReadDone),
    Room,
    Drain,
    Kill,
    DiskFailed,
    DiskChecked(bool),
    Due,
}

impl Driver {
    /// A driver of the worker that `options` describe, which has not begun.
    pub(crate) fn new(
        client: WorkersServiceClient<Channel>,
        options: WorkerOptions,
        answer_within: Duration,
        stop: Stop,
        (runner, events): (Runner, mpsc::Receiver<Event>),
    ) -> Self {
        let settings = Settings {
            slots: options.slots,
            jobs_max: options.stay.jobs_max,
            reconnect: options.stay.reconnect,
            idle: options.stay.idle,
            report_within: options.stay.report_within,
            answer_within,
        };
        let instance = uuid::Uuid::now_v7();
        // The last 62 bits are random.
        let random = instance.as_u64_pair().1;
        Self {
            protocol: Protocol::new(settings, runner.found(), random),
            runner,
            events,
            client,
            options,
            instance: instance.to_string(),
            stop,
            began: Instant::now(),
            connection: None,
            reads: Reads::new(READ_WITHIN),
            checking: None,
            drained: false,
            killed: false,
            disk_failed: false,
            status: Status::unavailable("there was no session"),
            stopped: None,
        }
    }

    /// Works until there is nothing more to do, and lets go of what still runs.
    pub(crate) async fn run(&mut self) -> EndReason {
        self.feed(Input::Tick);
        let reason = loop {
            if let Some(reason) = self.stopped.take() {
                break reason;
            }
            self.send_waiting();
            match self.next().await {
                DriverEvent::Received(message) => self.received(message),
                DriverEvent::Attempt(event) => self.attempt_changed(event),
                DriverEvent::Read(done) => self.send_read(done),
                DriverEvent::Room => {}
                DriverEvent::Drain => {
                    self.drained = true;
                    self.feed(Input::DrainRequested);
                }
                DriverEvent::Kill => {
                    self.killed = true;
                    self.feed(Input::KillRequested);
                }
                DriverEvent::DiskFailed => self.feed_disk_failure(),
                DriverEvent::DiskChecked(usable) => {
                    self.checking = None;
                    self.disk_failed = !usable;
                    self.feed(Input::DiskChecked { usable });
                }
                DriverEvent::Due => self.feed(Input::Tick),
            }
        };
        self.connection = None;
        self.runner.release().await;
        reason
    }

    /// What became of the attempt that was recorded last.
    pub(crate) fn last(&self) -> Option<Adopted> {
        self.protocol.last().cloned()
    }

    /// Why there was no session, the last time that there was none.
    pub(crate) fn status(&self) -> Status {
        self.status.clone()
    }

    async fn next(&mut self) -> DriverEvent {
        let wants_room = self.wants_room();
        let wake = self.protocol.next_wake().and_then(|wake| self.began.checked_add(wake));
        let disk = Arc::clone(self.runner.disk());
        let Self { connection, events, reads, checking, stop, .. } = self;
        let outgoing = connection.as_ref().map(|connection| connection.outgoing.clone());
        let incoming = connection.as_mut().map(|connection| &mut connection.incoming);
        tokio::select! {
            message = next_message(incoming) => DriverEvent::Received(message),
            Some(event) = events.recv() => DriverEvent::Attempt(event),
            done = reads.next() => DriverEvent::Read(done),
            () = room_of(outgoing), if wants_room => DriverEvent::Room,
            () = stop.drain.cancelled(), if !self.drained => DriverEvent::Drain,
            () = stop.kill.cancelled(), if !self.killed => DriverEvent::Kill,
            () = disk.fails(), if !self.disk_failed => DriverEvent::DiskFailed,
            usable = checked(checking.as_mut()) => DriverEvent::DiskChecked(usable),
            () = wait_until(wake) => DriverEvent::Due,
        }
    }

    /// Feeds the state machine what happened, and carries out what follows.
    fn feed(&mut self, input: Input<Job>) {
        let mut effects = Vec::new();
        self.protocol.on(input, self.began.elapsed(), &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect<Job>) {
        match effect {
            Effect::Connect { connection, greeting } => self.connect(connection, greeting),
            Effect::Disconnect { connection } => {
                if self.connection.take_if(|open| open.id == connection).is_some() {
                    self.reads.clear();
                }
            }
            Effect::Begin { attempt, job } => self.runner.begin(attempt, job),
            Effect::Adopt { attempt, output_bytes } => self.runner.adopt(attempt, output_bytes),
            Effect::Cancel { attempt } => self.runner.cancel(&attempt),
            Effect::Forget { attempt, failed } => {
                if self.runner.forget(attempt.clone(), failed) {
                    self.feed(Input::Cleared { attempt });
                }
            }
            Effect::CheckDisk => {
                let attempts = Arc::clone(self.runner.attempts());
                // On a thread that may wait: the runtime has few, and they serve running jobs.
                self.checking = Some(spawn_blocking(move || attempts.can_run_again()));
            }
            Effect::Notice(notice) => self.notice(notice),
            Effect::Stop(reason) => self.stopped = Some(reason),
        }
    }

    fn connect(&mut self, id: ConnectionId, greeting: Greeting) {
        let (outgoing, receive) = mpsc::channel(OUTGOING_MAX);
        let hello = wire::hello(&self.options, &self.instance, greeting);
        // There is room: nothing is in it yet.
        drop(outgoing.try_send(v1::SessionRequest { message: Some(hello) }));
        let mut request = Request::new(ReceiverStream::new(receive));
        if let Some(bearer) = &self.options.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        let mut client = self.client.clone();
        let opening = async move { client.session(request).await.map(Response::into_inner) };
        let incoming = Incoming::Opening(Box::pin(opening));
        self.connection = Some(Connection { id, outgoing, incoming });
        self.reads.clear();
    }

    fn received(&mut self, message: Result<v1::SessionResponse, Status>) {
        let Some(connection) = self.connection.as_ref().map(|connection| connection.id) else {
            return;
        };
        match message {
            Ok(v1::SessionResponse { message }) => {
                let input = message.and_then(|message| wire::input(connection, message));
                if let Some(input) = input {
                    self.feed(input);
                }
            }
            Err(status) => {
                self.connection = None;
                self.reads.clear();
                let cause = cause_of(&status);
                self.status = status;
                self.feed(Input::Disconnected { connection, cause });
            }
        }
    }

    fn attempt_changed(&mut self, event: Event) {
        match event {
            Event::OutputGrew { attempt, length } => {
                self.feed(Input::OutputGrew { attempt, length });
            }
            Event::Ended { attempt, outcome, incomplete } => {
                // First, so that no job is assigned for the slot of an attempt that this worker
                // lost because it cannot write its own files.
                self.feed_disk_failure();
                self.feed(Input::Ended { attempt, outcome, incomplete });
            }
            Event::Cleared { attempt } => self.feed(Input::Cleared { attempt }),
        }
    }

    fn feed_disk_failure(&mut self) {
        let reason = self.runner.disk().trouble().filter(|_| !self.disk_failed);
        if let Some(reason) = reason {
            self.disk_failed = true;
            self.feed(Input::DiskFailed { reason });
        }
    }

    /// Whether there is something to send, and no room for it.
    fn wants_room(&self) -> bool {
        let Some(connection) = &self.connection else { return false };
        // A closed channel never has room. The connection ends soon, and that is an event of its own.
        let open = !connection.outgoing.is_closed();
        let uploads = || self.protocol.has_upload(|kind| self.reads.have_room(kind));
        open && (self.protocol.has_control() || uploads())
    }

    /// Sends what there is room for. A part of an attempt is read first.
    fn send_waiting(&mut self) {
        while self.wants_room() {
            let Some(connection) = &self.connection else { return };
            let Ok(place) = connection.outgoing.clone().try_reserve_owned() else { return };
            let control = self.protocol.next_control();
            let uploads = || self.protocol.next_upload(|kind| self.reads.have_room(kind));
            match control.or_else(uploads) {
                Some(Message::Heartbeat) => send(place, ToServer::Heartbeat(v1::Heartbeat {})),
                Some(Message::Drain) => send(place, ToServer::Drain(v1::Drain {})),
                Some(Message::Goodbye) => send(place, ToServer::Goodbye(v1::Goodbye {})),
                Some(Message::Report { attempt, outcome, output_bytes }) => {
                    send(place, wire::report(&attempt, outcome, output_bytes));
                }
                Some(Message::Part { attempt, part }) => {
                    let read = self.runner.reader(&attempt, &part);
                    self.reads.begin((attempt, part, place), read);
                }
                None => {}
            }
        }
    }

    fn send_read(&mut self, done: ReadDone) {
        let ReadDone { attempt, part, place, content } = done;
        match content {
            Ok(content) => {
                send(place, wire::part(&attempt, part, content));
                self.protocol.part_sent(&attempt);
            }
            Err(error) => {
                let reason = error.to_string();
                self.feed(Input::Unreadable { attempt, part, reason });
            }
        }
    }

    fn notice(&mut self, notice: Notice) {
        let (worker, link) = (&self.options.name, &self.options.stay.link);
        match notice {
            Notice::Connected { held } => {
                tracing::info!(worker, held, "connected to the server");
                link.send_replace(ConnectionState::Open(held));
            }
            Notice::Disconnected(outage) => {
                match outage {
                    Outage::Ended => {}
                    Outage::NoWelcome(waited) => {
                        let why = format!("the server did not answer for {} s", waited.as_secs());
                        self.status = Status::deadline_exceeded(why);
                    }
                    Outage::NoMessage(waited) => {
                        let why = format!("the server sent nothing for {} s", waited.as_secs());
                        self.status = Status::deadline_exceeded(why);
                    }
                }
                let reason = describe(&self.status);
                tracing::warn!(worker, reason, "worker disconnected");
                link.send_replace(ConnectionState::Lost(reason));
            }
            Notice::Paused { reason } => {
                tracing::warn!(worker, reason, "worker paused: it cannot run jobs");
                link.send_replace(ConnectionState::Paused(reason));
            }
            Notice::Resumed => tracing::info!(worker, "worker takes jobs again"),
        }
    }
}

fn send(place: mpsc::OwnedPermit<v1::SessionRequest>, message: ToServer) {
    place.send(v1::SessionRequest { message: Some(message) });
}

/// The next message of a connection, or why there will be none. Waits without end if there is no
/// connection.
async fn next_message(incoming: Option<&mut Incoming>) -> Result<v1::SessionResponse, Status> {
    let Some(incoming) = incoming else { return pending().await };
    loop {
        match incoming {
            Incoming::Opening(opening) => *incoming = Incoming::Open(Box::new(opening.await?)),
            Incoming::Open(messages) => {
                let ended = || Err(Status::unavailable("the session ended"));
                return messages.next().await.unwrap_or_else(ended);
            }
        }
    }
}

/// Waits until another message has room, or no message will.
async fn room_of(outgoing: Option<mpsc::Sender<v1::SessionRequest>>) {
    match outgoing {
        Some(outgoing) => drop(outgoing.reserve().await),
        None => pending().await,
    }
}

async fn checked(checking: Option<&mut JoinHandle<bool>>) -> bool {
    match checking {
        // A check that broke does not show how the disk is: it is looked at again later.
        Some(checking) => checking.await.unwrap_or(false),
        None => pending().await,
    }
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// Whether a server that answers so will ever answer otherwise.
fn cause_of(status: &Status) -> Cause {
    match status.code() {
        Code::AlreadyExists => Cause::NameTaken,
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => Cause::Refused,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Cause::Lost,
    }
}

/// What a status says, with the cause that people want to know.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(deeper) = cause {
        let text_of = deeper.to_string();
        if !text.contains(&text_of) {
            text = format!("{text}: {text_of}");
        }
        cause = deeper.source();
    }
    text
}
