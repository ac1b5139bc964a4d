//! `--at`: a run as it was at an earlier point of the log.

use std::str::FromStr;

use towpath_engine::time::Timestamp;
use towpath_proto::{
    time::timestamp,
    v1::{self, read_point::Point},
};

use crate::render::words::moment;

/// Where in the log to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Position(u64),
    Time(Timestamp),
}

/// A text that is neither a position nor a time.
#[derive(Debug, thiserror::Error)]
#[error("neither a position of the log, such as 312, nor a time, such as 2026-04-07T14:00:00Z")]
pub(crate) struct NoPoint;

impl FromStr for At {
    type Err = NoPoint;

    fn from_str(text: &str) -> Result<Self, NoPoint> {
        if let Ok(position) = text.parse() {
            return Ok(Self::Position(position));
        }
        Timestamp::parse(text).map(Self::Time).ok_or(NoPoint)
    }
}

/// At which point a command reads.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct AtArg {
    /// As it was after this position of the log, or at this time (RFC 3339)
    #[arg(long, value_name = "POSITION|TIME")]
    pub(crate) at: Option<At>,
}

impl AtArg {
    /// The same for a request.
    pub(crate) fn message(self) -> Option<v1::ReadPoint> {
        let point = match self.at? {
            At::Position(position) => Point::Position(position),
            At::Time(time) => Point::Time(timestamp(time.0)),
        };
        Some(v1::ReadPoint { point: Some(point) })
    }
}

/// What a person is told beside an answer about the past.
pub(crate) fn as_of_line(as_of: &v1::AsOf) -> String {
    let time = moment(as_of.time.as_ref()).map(|time| format!(" ({time})")).unwrap_or_default();
    format!("As of position {}{time}.", as_of.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_a_position_or_a_time_with_an_offset() {
        assert_eq!("312".parse::<At>().unwrap(), At::Position(312));
        let at: At = "2025-11-21T10:02:03.007+01:00".parse().unwrap();
        assert_eq!(at, At::Time(Timestamp(1_763_715_723_007)));
        for wrong in ["", "-1", "yesterday", "2025-11-21", "2025-11-21T10:02:03"] {
            assert!(wrong.parse::<At>().is_err(), "{wrong}");
        }
    }
}
