//! Bounds of messages, connections and identities, and the errors of clients that exceed one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use towpath_engine::code::ErrorCode;

/// Largest request to `Runs`: a pipeline file, the record of another tool, and what surrounds them.
pub(crate) const RUNS_MESSAGE_BYTES_MAX: usize = 18 * 1024 * 1024;
/// Largest message to everything else, health and reflection included. The hello of a worker that
/// holds thousands of jobs is the longest.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Largest answer, beside those of `Runs`: what a client reads by default.
pub(crate) const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Output, or part of a file, in one message.
pub(crate) const PART_BYTES_MAX: usize = 64 * 1024;
/// All headers of one request, by the rules of HTTP/2. More is answered with HTTP status 431.
pub(crate) const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Requests and open streams of one connection. The transport holds back what is more.
pub(crate) const STREAMS_MAX: u32 = 128;
/// Requests of one connection that are worked on at once; open streams do not count.
pub(crate) const REQUESTS_MAX: usize = 64;
/// Streams that were reset before the server saw them; one more ends the connection.
pub(crate) const RESETS_MAX: usize = 20;
/// How long a client may take to agree on keys.
pub(crate) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Bytes that are read of a connection before one of its requests was admitted: a handshake, the
/// beginning of HTTP/2, and all headers of the first requests fit in.
pub(crate) const UNPROVEN_BYTES_MAX: usize = 128 * 1024;
/// Bytes that are read for every request that needs no proof, such as a health check.
pub(crate) const HEALTH_BYTES: usize = 4 * 1024;
/// Connections beyond the bound that get an error; further ones are closed without an answer.
pub(crate) const SURPLUS_MAX: usize = 64;
/// How long a connection beyond the bound stays open.
pub(crate) const SURPLUS_WITHIN: Duration = Duration::from_secs(2);
/// Identities whose rate is kept. Beyond them, those that ask seldom are forgotten first, which
/// they do not notice; the rest share one rate.
const IDENTITIES_MAX: usize = 10_000;
/// How long a client waits that met a bound which is free again at once.
const MOMENT: Duration = Duration::from_millis(100);

/// The bounds of a port that its owner may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second of one identity, once its burst is used up. Messages of an open stream are
    /// no requests.
    pub rate: u32,
    /// Requests of one identity that may come at once.
    pub burst: u32,
    /// Connections at once.
    pub connections: usize,
    /// From when on a connection takes no more requests. Its streams end up to a tenth later.
    pub connection_age: Duration,
    /// How long one request may take, or the next part of an upload. Streams have no end.
    pub request_within: Duration,
    /// How long a connection may stay without an admitted request, handshake included.
    pub first_request_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rate: 500,
            burst: 5_000,
            connections: 4_096,
            connection_age: Duration::from_secs(60 * 60),
            request_within: Duration::from_secs(30),
            first_request_within: Duration::from_secs(15),
        }
    }
}

/// A bound that a client exceeded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// A message with more bytes than are read.
    #[error("the message is too large: {found}")]
    MessageTooLarge {
        /// What was found, and what the bound is.
        found: String,
    },
    /// A message that would have to be unpacked first.
    #[error("compression `{encoding}` is not supported")]
    CompressionRefused {
        /// How it is packed.
        encoding: String,
    },
    /// Too many requests of one identity.
    #[error("`{who}` exceeds its request rate")]
    RateExceeded {
        /// Who asks.
        who: String,
        /// After which time there is room for one more.
        wait: Duration,
    },
    /// Too many requests of one connection at once.
    #[error("more than {REQUESTS_MAX} requests of one connection at once")]
    RequestsTooMany,
    /// Too many connections.
    #[error("more than {max} connections at once")]
    ConnectionsTooMany {
        /// How many there may be.
        max: usize,
    },
    /// A request that took too long.
    #[error("the request took longer than {within:?}")]
    RequestTimedOut {
        /// How long it may take.
        within: Duration,
    },
    /// The connection has lasted long enough.
    #[error("the connection has reached its maximum age")]
    ConnectionAged,
}

impl Limit {
    /// The stable code that scripts may match on.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::MessageTooLarge { .. } => ErrorCode::MessageTooLarge,
            Self::CompressionRefused { .. } => ErrorCode::CompressionRefused,
            Self::RateExceeded { .. } => ErrorCode::RateExceeded,
            Self::RequestsTooMany => ErrorCode::RequestsTooMany,
            Self::ConnectionsTooMany { .. } => ErrorCode::ConnectionsTooMany,
            Self::RequestTimedOut { .. } => ErrorCode::RequestTimedOut,
            Self::ConnectionAged => ErrorCode::ConnectionAged,
        }
    }

    /// After which time it is worth trying again. `None`: it is not, or nothing has to be waited
    /// for.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateExceeded { wait, .. } => Some(*wait),
            Self::RequestsTooMany => Some(MOMENT),
            Self::ConnectionsTooMany { .. } => Some(SURPLUS_WITHIN),
            Self::ConnectionAged => Some(Duration::ZERO),
            Self::MessageTooLarge { .. }
            | Self::CompressionRefused { .. }
            | Self::RequestTimedOut { .. } => None,
        }
    }
}

/// How often every identity has asked: a bucket of tokens for each.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: f64,
    burst: f64,
    buckets: HashMap<String, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    pub(crate) fn new(limits: &Limits) -> Self {
        // At least one, or a setting of 0 would lock out the owner as well.
        let (rate, burst) = (f64::from(limits.rate.max(1)), f64::from(limits.burst.max(1)));
        Self { rate, burst, buckets: HashMap::new() }
    }

    /// Takes one request of `who` at `now`.
    pub(crate) fn take(&mut self, who: &str, now: Instant) -> Result<(), Limit> {
        let (rate, burst) = (self.rate, self.burst);
        let left = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + passed * rate).min(burst)
        };
        // Full buckets have no history and can be dropped without a difference to anyone.
        if self.buckets.len() >= IDENTITIES_MAX && !self.buckets.contains_key(who) {
            self.buckets.retain(|_, bucket| left(bucket) < burst);
        }
        let crowded = self.buckets.len() >= IDENTITIES_MAX && !self.buckets.contains_key(who);
        // Further identities share one bucket: an attacker with many addresses competes with itself
        // only.
        let key = if crowded { "" } else { who };
        let known = self.buckets.get(key).map_or(burst, left);
        let taken = known >= 1.0;
        // Stored also after a refusal, so that the time since then is not counted twice.
        let bucket = Bucket { left: if taken { known - 1.0 } else { known }, at: now };
        self.buckets.insert(key.to_owned(), bucket);
        if taken {
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - known) / rate).max(Duration::from_millis(1));
        Err(Limit::RateExceeded { who: who.to_owned(), wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(rate: u32, burst: u32) -> Rates {
        Rates::new(&Limits { rate, burst, ..Limits::default() })
    }

    fn wait(taken: Result<(), Limit>) -> Option<Duration> {
        match taken {
            Ok(()) => None,
            Err(limit) => limit.retry_after(),
        }
    }

    #[test]
    fn a_burst_is_let_through_and_then_so_many_a_second() {
        let (mut rates, start) = (rates(10, 3), Instant::now());
        for _ in 0..3 {
            assert_eq!(rates.take("ana", start), Ok(()));
        }

        assert_eq!(wait(rates.take("ana", start)), Some(Duration::from_millis(100)));
        assert_eq!(rates.take("bob", start), Ok(()), "every identity has its own bucket");
        let later = start + Duration::from_millis(60);
        assert_eq!(wait(rates.take("ana", later)), Some(Duration::from_millis(40)));
        assert_eq!(rates.take("ana", start + Duration::from_millis(101)), Ok(()));
        assert!(rates.take("ana", start + Duration::from_millis(101)).is_err());
        for _ in 0..3 {
            assert_eq!(rates.take("ana", start + Duration::from_secs(60)), Ok(()));
        }
        assert!(
            rates.take("ana", start + Duration::from_secs(60)).is_err(),
            "never above the burst"
        );
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing_away() {
        let (mut rates, start) = (rates(1, 1), Instant::now());
        let later = start + Duration::from_secs(5);
        assert_eq!(rates.take("ana", later), Ok(()));
        assert!(rates.take("ana", start).is_err());
        assert!(rates.take("ana", start).is_err());
    }

    #[test]
    fn strangers_without_number_do_not_fill_the_memory_and_do_not_harm_who_is_known() {
        let (mut rates, start) = (rates(1, 2), Instant::now());
        assert_eq!(rates.take("ana", start), Ok(()));
        for n in 0..3 * IDENTITIES_MAX {
            drop(rates.take(&n.to_string(), start));
        }
        assert!(rates.buckets.len() <= IDENTITIES_MAX + 1);
        assert_eq!(rates.take("ana", start), Ok(()));

        // An idle identity is removed, which changes nothing for it.
        assert_eq!(rates.take("new", start + Duration::from_secs(9)), Ok(()));
        assert_eq!(rates.buckets.len(), 1);
    }
}
