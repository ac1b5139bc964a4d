//! What a condition read, as in the event that says how the condition was decided.

use std::collections::BTreeMap;

use super::{Context, path};
use crate::ids::Blob;

/// Longest value that is recorded with the decision it led to, in bytes. Of a longer one the digest
/// is recorded.
const INPUT_VALUE_BYTES_MAX: usize = 1024;
/// Most bytes of all values that are recorded with one decision, written as JSON.
const INPUTS_BYTES_MAX: usize = 16 * 1024;

/// What a condition read, by path. Bounded, so that it always fits an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// The values.
    pub values: BTreeMap<String, String>,
    /// Length and digest of the values that are too long, or too many, to be repeated.
    pub long: BTreeMap<String, Blob>,
}

impl Inputs {
    pub(super) fn of(parsed: &path::Parsed, context: &Context) -> Self {
        let mut inputs = Self::default();
        let mut left = INPUTS_BYTES_MAX;
        for reference in &parsed.references {
            let Some(value) = context.value(&reference.path) else { continue };
            let path = reference.path.to_string();
            if inputs.values.contains_key(&path) || inputs.long.contains_key(&path) {
                continue;
            }
            // As JSON, because that is what an event is: a quote takes two bytes there.
            let written = if value.len() > INPUT_VALUE_BYTES_MAX {
                usize::MAX
            } else {
                serde_json::to_string(value).map_or(usize::MAX, |text| text.len())
            };
            if written <= left {
                left -= written;
                inputs.values.insert(path, value.to_owned());
            } else {
                inputs.long.insert(path, Blob::of(value.as_bytes()));
            }
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::{NeedFacts, evaluate_condition};

    /// What `a.k0 != "" or a.k1 != "" or …` reads when each output is the value at its place.
    fn read(values: &[String]) -> Inputs {
        let outputs = values.iter().enumerate();
        let outputs = outputs.map(|(at, value)| (format!("k{at}"), value.clone())).collect();
        let facts = NeedFacts { outcome: "succeeded".to_owned(), outputs };
        let context = Context { needs: [("a".into(), facts)].into(), ..Context::default() };
        let parts = (0..values.len()).map(|at| format!("needs.a.outputs.k{at} != \"\""));
        let condition = parts.collect::<Vec<_>>().join(" or ");
        evaluate_condition(&condition, &context).unwrap().1
    }

    #[test]
    fn a_long_value_is_named_by_its_length_and_digest() {
        let long = "x".repeat(INPUT_VALUE_BYTES_MAX + 1);

        let inputs = read(&["12".to_owned(), long.clone()]);

        assert_eq!(inputs.values, [("needs.a.outputs.k0".into(), "12".into())].into());
        let blob = Blob::of(long.as_bytes());
        assert_eq!(inputs.long, [("needs.a.outputs.k1".into(), blob)].into());
    }

    #[test]
    fn many_values_are_bounded_together_as_json_writes_them() {
        let quotes = "\"".repeat(INPUT_VALUE_BYTES_MAX);

        let inputs = read(&vec![quotes; 60]);

        assert_eq!((inputs.values.len(), inputs.long.len()), (7, 53));
        let written = serde_json::to_vec(&inputs.values).unwrap().len();
        assert!(written < INPUTS_BYTES_MAX + 1024, "{written}");
    }
}
