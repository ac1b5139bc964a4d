//! A fact and its bytes. The only place that knows how a fact is written, old formats included.

use serde::{Serialize, de::DeserializeOwned};

use crate::event::Fact;

/// Longest encoded fact, in bytes. What is larger belongs in a blob.
pub const FACT_BYTES_MAX: usize = 60 * 1024;

/// A fact that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The fact is too long for a record.
    #[error("an event of {bytes} bytes is longer than {FACT_BYTES_MAX}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
}

/// Bytes that say nothing this version understands.
#[derive(Debug, thiserror::Error)]
#[error("not an event this version knows")]
pub struct DecodeError(#[from] serde_json::Error);

/// The one line of JSON for `fact`, without a line end.
pub fn encode<E: Serialize>(fact: &Fact<E>) -> Result<Vec<u8>, EncodeError> {
    let bytes = serde_json::to_vec(fact).expect("BUG: a fact is always JSON");
    if bytes.len() > FACT_BYTES_MAX {
        return Err(EncodeError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// The fact that `bytes` say. Refuses unknown kinds and unknown fields: an old program must stop
/// at a newer log, not read it with holes.
pub fn decode<E: DeserializeOwned>(bytes: &[u8]) -> Result<Fact<E>, DecodeError> {
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::RunEvent, ids::Actor, time::Timestamp};

    fn fact(event: RunEvent) -> Fact {
        Fact { at: Timestamp(0), by: Actor::human("ana"), event }
    }

    #[test]
    fn a_fact_is_one_line_with_its_fields_in_order() {
        let bytes = encode(&fact(RunEvent::RunStarted {})).unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"at":"1970-01-01T00:00:00.000Z","by":"human:ana","event":{"kind":"run_started"}}"#
        );
        assert_eq!(decode(&bytes).unwrap(), fact(RunEvent::RunStarted {}));
    }

    #[test]
    fn an_unknown_field_or_kind_stops_the_reader() {
        let line = r#"{"at":"1970-01-01T00:00:00.000Z","by":"human:ana","event":KIND}"#;
        for event in [r#"{"kind":"run_painted"}"#, r#"{"kind":"run_aborted","root":"a","x":1}"#] {
            assert!(decode::<RunEvent>(line.replace("KIND", event).as_bytes()).is_err(), "{event}");
        }
    }

    #[test]
    fn a_fact_longer_than_a_record_is_refused() {
        let reason = "x".repeat(FACT_BYTES_MAX);
        let error = encode(&fact(RunEvent::RunCancelRequested { reason })).unwrap_err();
        assert!(matches!(error, EncodeError::TooLong { .. }));
    }
}
