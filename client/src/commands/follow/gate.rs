//! A run that waits for a person: what they should read, and what they say.

use std::io::{self, IsTerminal as _, Write as _};

use tokio::sync::oneshot;
use towpath_engine::{ids::JobName, job::JobState};
use towpath_proto::v1;

use super::Show;
use crate::{authors, failure::Failure, render::safe};

/// What became of a gate.
pub(super) enum AtGate {
    Decided,
    Wait,
    Leave,
}

impl Show<'_> {
    /// Only people can go on: asks the one at this terminal, or says how to.
    pub(super) async fn at_gate(&mut self, wait: bool) -> Result<AtGate, Failure> {
        let left = if wait { AtGate::Wait } else { AtGate::Leave };
        let waiting = self.run.gates().filter_map(|job| Some((job.plan.name.clone(), job.binds?)));
        let Some((job, binds)) = waiting.into_iter().find(|(_, binds)| !self.asked.contains(binds))
        else {
            return Ok(left);
        };
        self.asked.push(binds);
        self.draw()?;
        self.screen.clear(&mut io::stdout().lock())?;
        self.show_gate(&job);
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let asks =
            self.live && io::stdin().is_terminal() && !set("CI") && !set("TOW_PROMPT_DISABLED");
        if !asks {
            return Ok(left);
        }
        match ask().await.as_deref() {
            Some("y" | "yes") => self.decide(&job, true, left).await,
            Some("n" | "no") => self.decide(&job, false, left).await,
            Some(_) | None => Ok(AtGate::Leave),
        }
    }

    fn show_gate(&self, name: &JobName) {
        let Some(job) = self.run.job(name.as_str()) else { return };
        let style = &self.desk.style;
        let quoted = towpath_engine::expression::quoted(name.as_str());
        let id = &self.short_id;
        let mut lines = Vec::new();
        if job.plan.irreversible {
            lines.push("There is no way back after it.".to_owned());
        }
        for need in &job.plan.needs {
            if let Some(need) = self.run.job(need.as_str()) {
                let told = need.outputs.iter();
                let told: Vec<String> =
                    told.map(|(key, value)| format!("{key}={}", safe(value))).collect();
                let name = safe(need.plan.name.as_str());
                let word = need.state.word().replace('_', " ");
                lines.push(format!("{name} {word}  {}", told.join("  ")).trim_end().to_owned());
            }
        }
        if let JobState::AtGate(binds) = &job.state {
            lines.push(format!("An approval covers this, as {}.", binds.short()));
        }
        for line in job.plan.script.trim().lines().take(5) {
            lines.push(format!("$ {}", safe(line)));
        }
        let name = safe(name.as_str());
        self.desk
            .say(&format!("{} {name} waits at its gate.", style.mark(crate::render::Mark::Gate)));
        // Whole, however wide: whom to ask must not be cut off.
        if let Some(policy) = &job.plan.gate {
            self.desk.say(&format!("  It wants {}.", safe(&policy.words())));
            self.desk.say(&format!("  It has {}.", safe(&job.quorum_words())));
        }
        for line in lines {
            self.desk.say(&style.fit(&format!("  {line}"), style.width));
        }
        // Whole, however wide: these are there to be copied.
        self.desk.say(&format!("  tow approve {quoted} --run {id}"));
        self.desk.say(&format!("  tow reject {quoted} --run {id} --comment WHY"));
    }

    /// Says what the person at the terminal said. Whom the gate does not let in leaves it as it is.
    async fn decide(
        &mut self,
        job: &JobName,
        approve: bool,
        left: AtGate,
    ) -> Result<AtGate, Failure> {
        let Some(known) = self.run.job(job.as_str()) else { return Ok(AtGate::Wait) };
        let JobState::AtGate(binds) = known.state else { return Ok(AtGate::Wait) };
        let asks = known.plan.gate.is_some();
        let request = v1::DecideGateRequest {
            run: self.short_id.clone(),
            job: job.to_string(),
            binds: binds.to_string(),
            comment: String::new(),
            actor: self.desk.actor(),
            emails: if asks { authors::own_emails() } else { Vec::new() },
        };
        let mut gates = self.server.gates();
        if !approve {
            gates.reject_gate(request).await?;
            return Ok(AtGate::Decided);
        }
        match gates.approve_gate(request).await.map_err(Failure::from) {
            Ok(reply) => {
                let v1::DecideGateReply { missing, waits_for, .. } = reply.into_inner();
                if missing > 0 {
                    self.desk.say(&format!("  Approved: {}.", safe(&waits_for)));
                }
                Ok(AtGate::Decided)
            }
            Err(failure) if failure.code.starts_with("APPROVER_") => {
                self.desk.say(&failure.to_string());
                Ok(left)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// One line from the person at the terminal. A thread of its own: nothing can call off a read, and
/// the process need not wait for it.
async fn ask() -> Option<String> {
    let mut err = io::stderr().lock();
    drop(write!(err, "Open the gate? [y]es, [n]o, or Enter to leave it: "));
    drop(err.flush());
    drop(err);
    let (send, receive) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        drop(send.send(read.ok().map(|_| line.trim().to_lowercase())));
    });
    tokio::select! {
        line = receive => line.ok().flatten(),
        _ = tokio::signal::ctrl_c() => {
            drop(writeln!(io::stderr().lock()));
            None
        }
    }
}
