//! What goes wrong, and when it stops.

use crate::{
    server::LEASE,
    world::{Ms, Step, World},
};

const YEAR: Ms = 365 * 86_400_000;

impl World {
    /// One thing more goes wrong.
    pub(crate) fn chaos(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.rng.between(100, 12_000);
        self.after(wait, Step::Chaos);
        let worker = self.rng.index(3);
        let conn = self.workers[worker].conn;
        match self.rng.below(26) {
            0..4 => {
                let down = self.rng.mostly(5_000, 2 * LEASE);
                self.server_dies(down);
            }
            4..6 => self.worker_dies(worker, false),
            6..8 => self.worker_dies(worker, true),
            8..11 => {
                let sleep = self.rng.mostly(LEASE / 3, 3 * LEASE);
                let all = self.rng.chance(50);
                let until = self.now + sleep;
                let worker = &mut self.workers[worker];
                // Never shorter than it was: what arrived meanwhile waits for that moment, and
                // would be passed by what arrives later.
                (worker.asleep_until, worker.all_asleep) = (until.max(worker.asleep_until), all);
            }
            11..13 => {
                if let Some(conn) = conn {
                    self.cut(conn);
                }
            }
            13..15 => {
                self.parted[worker] = self.now + self.rng.mostly(LEASE, 3 * LEASE);
                if let Some(conn) = conn {
                    self.cut(conn);
                }
            }
            15 => self.stalled[worker] = self.now + self.rng.between(10, 2 * LEASE),
            16 => self.server.slow_until = self.now + self.rng.between(500, 20_000),
            17 => self.server.full_until = self.now + self.rng.between(100, 10_000),
            18 => {
                // Mostly what a time server does; sometimes what a person or a dead battery does.
                let most = if self.rng.chance(30) { YEAR } else { 60_000 };
                let step = i64::try_from(self.rng.below(2 * most)).unwrap_or(0);
                self.server.clock_off += step - i64::try_from(most).unwrap_or(0);
            }
            19 => {
                let until = self.now + self.rng.mostly(LEASE / 4, 3 * LEASE);
                self.server.paused_until = self.server.paused_until.max(until);
            }
            20..22 => {
                let drained = !self.server.drained.contains(&worker);
                self.drain(worker, drained);
            }
            22 => self.worker_leaves(worker),
            23 => {
                // What a machine leaves that loses its power, or a proxy whose server hangs.
                if let Some(line) = conn.and_then(|conn| self.conns.get_mut(&conn)) {
                    line.half_open = true;
                }
            }
            24 => self.unanswered[worker] = self.now + self.rng.mostly(10_000, 2 * LEASE),
            _ => {
                if worker == 2 && self.rng.chance(40) {
                    self.workers[2].buried = true;
                    self.worker_dies(2, true);
                }
            }
        }
    }

    /// Nothing goes wrong any more, and what is down comes up. Sleeps end when they would have, and
    /// who is buried stays so.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        (self.server.slow_until, self.server.full_until) = (0, 0);
        for worker in self.server.drained.clone() {
            self.drain(worker, false);
        }
        self.parted.fill(0);
        self.stalled.fill(0);
        self.unanswered.fill(0);
        for worker in 0..3 {
            self.after(1, Step::WorkerUp { worker });
        }
        self.after(1, Step::ServerUp);
    }
}
