//! A run that waits for a person: what they should read, and what they say.

use std::io::{self, IsTerminal as _, Write as _};

use tokio::sync::oneshot;
use towpath_engine::code::ErrorCode;
use towpath_proto::v1;

use super::screen::Show;
use crate::{
    authors,
    failure::Failure,
    pager::{Paged, page},
    render::{
        gate_card::{Answer, GateCard},
        height, safe,
        words::{self, GateFacts},
    },
    signals::Signals,
};

/// How often a person who did not type the required word is prompted again.
const ASKED_MAX: usize = 3;
/// Rows of the screen that the summary and the question take.
const QUESTION_ROWS: usize = 2;

/// What became of a gate.
pub(super) enum AtGate {
    Decided,
    Wait,
    Leave,
}

impl Show<'_> {
    /// The run waits at a gate: prompts the person at this terminal, or prints how to approve.
    pub(super) async fn at_gate(
        &mut self,
        wait: bool,
        signals: &mut Signals,
    ) -> Result<AtGate, Failure> {
        let left = if wait { AtGate::Wait } else { AtGate::Leave };
        let mut cards = self
            .run
            .gates()
            .filter_map(|job| GateCard::new(&self.run, job, &self.short_id, &self.style()));
        // By digest and not by job: a gate that waits again for something else is a new question.
        let Some(card) = cards.find(|card| !self.asked.contains(&card.approval_digest)) else {
            return Ok(left);
        };
        drop(cards);
        // Remembered before the prompt, so that an answer that is refused is not asked for again in
        // a loop.
        self.asked.push(card.approval_digest);
        self.draw();
        self.clear();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        // Who cannot see the card, because it goes into a file, cannot be asked about it.
        let asks = self.live
            && io::stdin().is_terminal()
            && io::stderr().is_terminal()
            && !set("CI")
            && !set("TOW_PROMPT_DISABLED");
        if !asks {
            self.print_card(&card);
            return Ok(left);
        }
        if !self.show_card(&card, signals).await {
            return Ok(AtGate::Leave);
        }
        // Bounded: a program that types into the terminal would otherwise never leave the prompt.
        for _ in 0..ASKED_MAX {
            let Some(line) = ask(&card.question(), signals).await else { break };
            match card.answer(&line) {
                Answer::Approve => return self.decide(&card, true, left).await,
                Answer::Reject => return self.decide(&card, false, left).await,
                Answer::Leave => break,
                Answer::Unproven => {}
            }
        }
        Ok(AtGate::Leave)
    }

    /// Prints all of `card`, for later readers.
    fn print_card(&self, card: &GateCard) {
        let columns = io::stderr().is_terminal().then_some(self.style().width);
        for row in card.rows(columns) {
            self.app.say(&row);
        }
    }

    /// Shows all of `card` to the person at this terminal. `false`: they are not to be asked any
    /// more.
    async fn show_card(&self, card: &GateCard, signals: &mut Signals) -> bool {
        let columns = Some(self.style().width);
        let rows = card.rows(columns);
        // With the prompt in view, or the first rows of the card would scroll off the screen
        // unread.
        if rows.len() + QUESTION_ROWS <= height() {
            self.print_card(card);
            return true;
        }
        match page(&(rows.join("\n") + "\n"), signals).await {
            Paged::Shown => {
                // What was read may be off the screen by now: whose gate it was stands above the
                // question.
                for row in card.summary_rows(columns) {
                    self.app.say(&row);
                }
                true
            }
            // All of it, then: what scrolled by can be scrolled back to.
            Paged::NotShown => {
                self.print_card(card);
                true
            }
            Paged::Terminated => false,
        }
    }

    /// Says what the person at the terminal said. Whom the gate does not let in leaves it as it is.
    async fn decide(
        &mut self,
        card: &GateCard,
        approve: bool,
        left: AtGate,
    ) -> Result<AtGate, Failure> {
        let known = self.run.job(card.job.as_str());
        let asks = known.is_some_and(|job| job.plan.gate.is_some());
        let (run, job) = (self.short_id.clone(), card.job.to_string());
        // What was shown, and not what waits by now: the server refuses a decision about anything
        // else.
        let approval_digest = card.approval_digest.to_string();
        let (comment, actor) = (String::new(), self.app.actor());
        let mut gates = self.server.gates();
        if !approve {
            let request = v1::RejectGateRequest { run, job, approval_digest, comment, actor };
            gates.reject_gate(request).await?;
            return Ok(AtGate::Decided);
        }
        // Addresses are sent only where a policy compares them: the log keeps what it is given.
        let emails = if asks { authors::own_emails() } else { Vec::new() };
        let request = v1::ApproveGateRequest { run, job, approval_digest, comment, actor, emails };
        match gates.approve_gate(request).await.map_err(Failure::from) {
            Ok(reply) => {
                if let Some(gate) = reply.into_inner().gate {
                    let waits_for = words::gate_waits_for(&GateFacts::from(&gate));
                    self.app.say(&format!("  Approved: {}.", safe(&waits_for)));
                }
                Ok(AtGate::Decided)
            }
            // Another person has to approve; the run itself is fine and is still watched.
            Err(failure) if is_about_approver(&failure) => {
                self.app.say(&failure.to_string());
                Ok(left)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Whether another person could do what `failure` refused: the gate stays as it is, and the run is
/// watched on.
fn is_about_approver(failure: &Failure) -> bool {
    use ErrorCode as E;
    failure.code().is_some_and(|code| {
        [
            E::ApproverNotHuman,
            E::ApproverNotAllowed,
            E::ApproverHasApproved,
            E::ApproverIsRequester,
            E::ApproverIsAuthor,
            E::ApproverEmailUnknown,
        ]
        .contains(&code)
    })
}

/// One line from the person at the terminal. A thread of its own: nothing can call off a read, and
/// the process need not wait for it.
async fn ask(question: &str, signals: &mut Signals) -> Option<String> {
    let mut err = io::stderr().lock();
    drop(write!(err, "{question}"));
    drop(err.flush());
    drop(err);
    let (send, receive) = oneshot::channel();
    // A read of the terminal cannot be cancelled. The thread is left behind when a signal ends the
    // prompt, and ends with the process.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        drop(send.send(read.ok().map(|_| line)));
    });
    tokio::select! {
        line = receive => line.ok().flatten(),
        () = signals.next() => {
            drop(writeln!(io::stderr().lock()));
            None
        }
    }
}
