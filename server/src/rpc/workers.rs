//! `towpath.v1.WorkersService`: one session for each worker.

mod hello;
mod pages;
mod reports;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};
use towpath_engine::{
    decide::Ended,
    event::{Artifact, FailureCause},
    ids::WorkerName,
    results,
    scheduler::{Input, Message as Outbound, SessionId},
};
use towpath_proto::{
    time::duration_ms,
    v1::{self, session_request::Message, workers_service_server::WorkersService},
};

use towpath_storage::StoreError;

use self::reports::{Reports, UnderWay, artifact_path, fits, note_part, part};
use super::{STREAM_QUEUE, Streamed, streamed};
use crate::{
    Server,
    auth::{self, Requester},
    command_error::CommandError,
    demand::{FittingDemand, LaunchOffer},
    outbox::{Outbox, Outgoing, outbox},
    outputs::Key,
    scheduler_driver::{Answer, End},
    shared_scheduler::Delivery,
    status,
    wire::{self, Reported},
};

#[tonic::async_trait]
impl WorkersService for Server {
    type SessionStream = Outgoing;
    type WatchDemandStream = Streamed<v1::WatchDemandResponse>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, outgoing) = outbox();
        let server = self.clone();
        let (_, extensions, mut incoming) = request.into_parts();
        tokio::spawn(async move {
            let hello = match hello::first_of(&mut incoming, hello::WITHIN).await {
                Ok(hello) => hello,
                Err(error) => return outbox.end(Some(status::of(error))),
            };
            let named = auth::is_worker(&extensions, &hello.worker);
            if let Err(error) = named {
                return outbox.end(Some(status::of(error)));
            }
            let outbox = outbox.named(&hello.worker);
            match server.driver().open(hello, &outbox).await {
                Ok((session, delivery)) => {
                    let delivering =
                        server.clone().deliver(session, delivery.clone(), outbox.clone());
                    tokio::spawn(delivering);
                    let served = server.serve_worker(session, &delivery, incoming, &outbox).await;
                    server.scheduler().disconnect(session, served.err());
                }
                Err(error) => outbox.end(Some(status::of(error))),
            }
        });
        Ok(Response::new(outgoing))
    }

    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let mut workers = self.workers();
        for name in self.settings().drained().await.map_err(status::of)? {
            if !workers.iter().any(|worker| worker.name == name.as_str()) {
                workers.push(wire::absent_worker(&name, true));
            }
        }
        Ok(Response::new(pages::page_of(workers, &request.into_inner())))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let by = Requester::of(&request).map_err(status::of)?.actor;
        let v1::DrainWorkerRequest { name, drain, actor: _ } = request.into_inner();
        let name = WorkerName::from(name);
        self.settings().set_drained(name.clone(), drain, &by).await.map_err(status::of)?;
        let connected =
            self.scheduler().inspect(|all| all.worker(&name).map(|it| wire::worker(&it)));
        let worker = connected.unwrap_or_else(|| wire::absent_worker(&name, drain));
        Ok(Response::new(v1::DrainWorkerResponse { worker: Some(worker) }))
    }

    async fn watch_demand(
        &self,
        request: Request<v1::WatchDemandRequest>,
    ) -> Result<Response<Self::WatchDemandStream>, Status> {
        let v1::WatchDemandRequest { tags, all } = request.into_inner();
        let (send, stream) = streamed(STREAM_QUEUE, wire::demand);
        let (demand, offer) = (self.demand(), LaunchOffer { tags, all });
        tokio::spawn(async move {
            demand.follow(|demand| FittingDemand::of(demand, &offer), send).await;
        });
        Ok(Response::new(stream))
    }
}

impl Server {
    /// The workers that are connected, by name.
    pub(crate) fn workers(&self) -> Vec<v1::Worker> {
        self.scheduler().inspect(|all| all.workers().map(|view| wire::worker(&view)).collect())
    }

    /// Sends what waits for a session, as its connection takes it.
    async fn deliver(self, session: SessionId, delivery: Delivery, outbox: Outbox) {
        loop {
            while let Some(message) = self.scheduler().next_message(session) {
                delivery.taken.notify_one();
                let message = match self.worded(session, message).await {
                    Ok(message) => message,
                    // What was to be said is lost with the session: it is said again in the next.
                    Err(error) => return self.scheduler().disconnect(session, Some(error)),
                };
                if let Some(message) = message
                    && !outbox.send(message).await
                {
                    return;
                }
            }
            tokio::select! {
                () = delivery.wake.notified() => {}
                () = delivery.closed.cancelled() => return,
                () = outbox.closed() => return,
            }
        }
    }

    /// A message as the worker reads it. `None`: the attempt that it is about has ended meanwhile.
    async fn worded(
        &self,
        session: SessionId,
        message: Outbound,
    ) -> Result<Option<v1::SessionResponse>, CommandError> {
        Ok(Some(match message {
            Outbound::Welcome { held } => {
                let held: Vec<Key> = held.into_iter().collect();
                let lengths = self.lengths(session, &held).await?;
                wire::welcome(lengths.into_iter(), self.scheduler().lease_ms())
            }
            Outbound::Assign { attempt, fence } => {
                let loaded = self.runs().lock_latest(&attempt.run).await?;
                return Ok(wire::assignment(&attempt, fence, &loaded.state));
            }
            Outbound::Cancel(attempt) => wire::cancel(&attempt),
            Outbound::Recorded(attempt) => wire::recorded(&attempt),
        }))
    }

    /// Takes in what a worker says until its session ends, by itself or for an error.
    async fn serve_worker(
        &self,
        session: SessionId,
        delivery: &Delivery,
        mut incoming: Streaming<v1::SessionRequest>,
        outbox: &Outbox,
    ) -> Result<(), CommandError> {
        let mut reports = Reports::default();
        loop {
            let read = async {
                while self.scheduler().inspect(|all| all.is_backed_up(session)) {
                    delivery.taken.notified().await;
                }
                incoming.next().await
            };
            let message = tokio::select! {
                () = self.stopping().cancelled() => return Ok(()),
                () = delivery.closed.cancelled() => return Ok(()),
                () = outbox.closed() => return Ok(()),
                message = read => message,
            };
            let message = match message {
                Some(Ok(v1::SessionRequest { message })) => message,
                // A worker that is gone is told nothing.
                Some(Err(gone)) => return status::misread(&gone).map_or(Ok(()), Err),
                None => return Ok(()),
            };
            self.scheduler().on(Input::Heartbeat { session });
            if matches!(message, Some(Message::Heartbeat(_))) {
                // A worker cannot tell a server that has nothing to say from one that hangs.
                outbox.try_send(wire::heartbeat());
            }
            if matches!(message, Some(Message::Goodbye(_))) {
                self.scheduler().on(Input::Goodbye { session });
                // Until what was on its way to the worker is recorded as lost.
                delivery.closed.cancelled().await;
                return Ok(());
            }
            self.worker_says(session, message, &mut reports).await?;
        }
    }

    /// Acts on one message. An error ends the session, and with it every other job of the worker:
    /// only what is wrong with the session itself, or with the store, is one. What is wrong with an
    /// attempt fails its job; else one bad file name would cost all the worker's jobs, again at
    /// every new session.
    async fn worker_says(
        &self,
        session: SessionId,
        message: Option<Message>,
        reports: &mut Reports,
    ) -> Result<(), CommandError> {
        match message {
            Some(Message::Output(v1::Output { attempt: of, offset, content })) => {
                let Some(key) = self.own(session, of)? else { return Ok(()) };
                let taken = fits(&content)
                    .and_then(|()| part(self.outputs().write(&key, offset, &content)));
                note_part(key, taken, &mut reports.refused)
            }
            Some(Message::Artifact(v1::ArtifactPart { attempt: of, path, content, offset })) => {
                let Some(key) = self.own(session, of)? else { return Ok(()) };
                let taken = fits(&content).and_then(|()| artifact_path(&path)).and_then(|()| {
                    part(self.outputs().write_artifact(&key, &path, offset, &content))
                });
                note_part(key, taken, &mut reports.refused)
            }
            Some(Message::Report(report)) => self.take_report(session, report, reports).await,
            Some(Message::Drain(v1::Drain {})) => {
                self.scheduler().on(Input::DrainRequested { session });
                Ok(())
            }
            Some(Message::Heartbeat(v1::Heartbeat {}) | Message::Goodbye(v1::Goodbye {}))
            | None => Ok(()),
            Some(Message::Hello(_)) => {
                Err(CommandError::MessageInvalid { what: "a second hello".to_owned() })
            }
        }
    }

    /// The attempt that a message is about, if this session was given it.
    fn own(
        &self,
        session: SessionId,
        of: Option<v1::AttemptId>,
    ) -> Result<Option<Key>, CommandError> {
        let key = wire::named_attempt(of)?;
        Ok(self.scheduler().inspect(|all| all.holds(session, &key)).then_some(key))
    }

    async fn take_report(
        &self,
        session: SessionId,
        report: v1::Report,
        reports: &mut Reports,
    ) -> Result<(), CommandError> {
        let v1::Report { attempt: of, run_time, ended, output_bytes } = report;
        // A time that is none is not worth a job: it is recorded as none.
        let ran_ms = run_time.as_ref().and_then(duration_ms).unwrap_or_default();
        let key = wire::named_attempt(of)?;
        if !self.scheduler().inspect(|all| all.holds(session, &key)) {
            return self.driver().answer_unheld(session, &key).await.map(drop);
        }
        // The first is answered. To keep a copy of everything for each of many would let a worker
        // fill the disk by saying one thing often.
        let Some(under_way) = UnderWay::begin(&reports.under_way, &key) else { return Ok(()) };
        let arrived = self.outputs().length(&key);
        let missing = (output_bytes > arrived).then(|| {
            format!("it counts {output_bytes} bytes of output, of which {arrived} have arrived")
        });
        let reported = wire::reported(ended);
        let reported = match reports.refused.remove(&key).or(missing) {
            Some(why) => reported.unless_invalid(why),
            None => reported,
        };
        let server = self.clone();
        // Beside the session: the disk of one job does not hold up the messages of another.
        tokio::spawn(async move {
            let recorded = server.record(session, &key, ran_ms, reported, arrived).await;
            drop(under_way);
            if let Err(error) = recorded {
                // The store could not take it now. The worker keeps the report and repeats it in
                // its next session.
                server.scheduler().disconnect(session, Some(error));
            }
        });
        Ok(())
    }

    /// Keeps what the attempt left, then has it recorded how it ended.
    async fn record(
        &self,
        session: SessionId,
        key: &Key,
        ran_ms: u64,
        reported: Reported,
        arrived: u64,
    ) -> Result<(), CommandError> {
        let ended = match reported {
            Reported::Ended(ended) => ended,
            Reported::Lost(reason) => {
                return self.record_end(session, key, End::Lost(reason)).await;
            }
        };
        let captured_output =
            if arrived == 0 { None } else { self.blocking(key, Self::keep_output).await? };
        let ended = match self.keep_files(key, &ended).await? {
            Some(why) => Ended::Failed(FailureCause::ReportInvalid(why)),
            None => ended,
        };
        self.record_end(session, key, End::Ended { ended, ran_ms, captured_output }).await
    }

    /// Has it recorded how an attempt ended, and forgets what it left behind only once the attempt
    /// counts no more. A session may end while a report is being kept: its worker then goes on from
    /// what is there in its next session, and to remove that would lose the output for good.
    async fn record_end(
        &self,
        session: SessionId,
        key: &Key,
        end: End,
    ) -> Result<(), CommandError> {
        match self.driver().record(session, key, end).await? {
            Answer::Recorded | Answer::Void => self.outputs().forget(key),
            Answer::Unanswered => {}
        }
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        key: &Key,
        work: impl FnOnce(&Self, &Key) -> Result<T, CommandError> + Send + 'static,
    ) -> Result<T, CommandError> {
        let (server, key) = (self.clone(), key.clone());
        let done = tokio::task::spawn_blocking(move || work(&server, &key)).await;
        done.unwrap_or(Err(CommandError::Store(StoreError::Closed)))
    }

    /// How much of the output of each attempt is there, for a worker that goes on from there. The
    /// worker waits for the answer and says nothing meanwhile: the reading counts as a heartbeat,
    /// or a worker with much output would be lost each time it comes back.
    async fn lengths(
        &self,
        session: SessionId,
        held: &[Key],
    ) -> Result<Vec<(Key, u64)>, CommandError> {
        let mut lengths = Vec::new();
        for key in held {
            let recover = |server: &Self, key: &Key| Ok(server.outputs().recover_or_set_aside(key));
            lengths.push((key.clone(), self.blocking(key, recover).await?));
            self.scheduler().on(Input::Heartbeat { session });
        }
        Ok(lengths)
    }

    fn keep_output(&self, key: &Key) -> Result<Option<towpath_engine::ids::Blob>, CommandError> {
        Ok(self.outputs().keep(key)?)
    }

    /// Keeps the artifacts of a job that succeeded. Answers what is wrong with them.
    async fn keep_files(&self, key: &Key, ended: &Ended) -> Result<Option<String>, CommandError> {
        let Ended::Succeeded { outputs, artifacts } = ended else { return Ok(None) };
        if results::problem(outputs, artifacts).is_some() {
            // The engine fails the job for it; there is no use in keeping thousands of files first.
            return Ok(None);
        }
        for artifact in artifacts.clone() {
            let kept =
                self.blocking(key, move |server, key| server.keep_file(key, &artifact)).await?;
            if kept.is_some() {
                return Ok(kept);
            }
        }
        Ok(None)
    }

    fn keep_file(&self, key: &Key, artifact: &Artifact) -> Result<Option<String>, CommandError> {
        let kept = self.outputs().keep_artifact(key, &artifact.path, &artifact.blob)?;
        let differs = || format!("artifact `{}` did not arrive as it was sent", artifact.path);
        Ok((!kept).then(differs))
    }
}
