//! Messages of the contract as JSON: one mapping for all of them, read from the contract itself, so
//! that a field of a message cannot be forgotten here. docs/protocols.md states the rules.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey,
    ReflectMessage as _, Value,
};
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap as _},
};
use towpath_engine::time::Timestamp;

static CONTRACT: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(towpath_proto::DESCRIPTORS).expect("BUG: the contract describes itself")
});

/// A message that is written as JSON.
pub(crate) struct Json(DynamicMessage);

/// `message`, ready to be written.
pub(crate) fn of<M: Message + Name>(message: &M) -> Json {
    let descriptor = CONTRACT
        .get_message_by_name(&M::full_name())
        .expect("BUG: every message is in the contract it is generated from");
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).expect("BUG: a message reads back as it was written");
    Json(dynamic)
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Json").field(&self.0).finish()
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Object(&self.0).serialize(serializer)
    }
}

struct Object<'a>(&'a DynamicMessage);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for field in self.0.descriptor().fields() {
            if is_written(self.0, &field) {
                let value = self.0.get_field(&field);
                object.serialize_entry(
                    field.name(),
                    &Member { kind: &field.kind(), value: &value },
                )?;
            }
        }
        object.end()
    }
}

/// Whether `field` has a member. A number and a truth value have one even if they are 0 or false: a
/// reader need not know defaults. An empty text and an enum that says nothing have none.
fn is_written(message: &DynamicMessage, field: &FieldDescriptor) -> bool {
    let says_nothing_if_empty = match field.kind() {
        Kind::String | Kind::Bytes | Kind::Enum(_) | Kind::Message(_) => true,
        Kind::Double
        | Kind::Float
        | Kind::Int32
        | Kind::Int64
        | Kind::Uint32
        | Kind::Uint64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Fixed32
        | Kind::Fixed64
        | Kind::Sfixed32
        | Kind::Sfixed64
        | Kind::Bool => false,
    };
    // Empty lists and zeros are written: a program must not have to know which fields can be
    // absent.
    field.is_list()
        || field.is_map()
        || message.has_field(field)
        || !(field.supports_presence() || says_nothing_if_empty)
}

struct Member<'a> {
    kind: &'a Kind,
    value: &'a Value,
}

impl Serialize for Member<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = self.kind;
        match self.value {
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::I32(value) => serializer.serialize_i32(*value),
            Value::I64(value) => serializer.serialize_i64(*value),
            Value::U32(value) => serializer.serialize_u32(*value),
            Value::U64(value) => serializer.serialize_u64(*value),
            Value::F32(value) => serializer.serialize_f32(*value),
            Value::F64(value) => serializer.serialize_f64(*value),
            Value::String(value) => serializer.serialize_str(value),
            // Bytes are records and pieces of files. No command writes them as JSON.
            Value::Bytes(_) => Err(S::Error::custom("bytes have no form in JSON")),
            Value::EnumNumber(number) => {
                let known = if let Kind::Enum(of) = kind { word(of, *number) } else { None };
                match known {
                    Some(word) => serializer.serialize_str(&word),
                    // A server of a later version: its number is all that is known.
                    None => serializer.serialize_i32(*number),
                }
            }
            Value::Message(message) => match message.descriptor().full_name() {
                // As the JSON mapping of Protocol Buffers writes them, so that other clients read
                // the same.
                "google.protobuf.Timestamp" => serializer.collect_str(&time(message)),
                "google.protobuf.Duration" => serializer.serialize_f64(seconds(message)),
                _ => Object(message).serialize(serializer),
            },
            Value::List(values) => {
                serializer.collect_seq(values.iter().map(|value| Member { kind, value }))
            }
            Value::Map(values) => {
                let Kind::Message(entry) = kind else {
                    return Err(S::Error::custom("a map without entries"));
                };
                let kind = entry.map_entry_value_field().kind();
                // In the order of the keys: a map of the wire has none.
                let sorted: BTreeMap<String, &Value> =
                    values.iter().map(|(key, value)| (key_text(key), value)).collect();
                let members =
                    sorted.iter().map(|(key, value)| (key, Member { kind: &kind, value }));
                serializer.collect_map(members)
            }
        }
    }
}

/// A value in lower case, without what the names of all values begin with.
fn word(of: &EnumDescriptor, number: i32) -> Option<String> {
    let unspecified = of.get_value(0)?;
    let prefix = unspecified.name().strip_suffix("UNSPECIFIED")?;
    // Values repeat the name of their enum, as the style of Protocol Buffers wants. No reader needs
    // it.
    Some(of.get_value(number)?.name().strip_prefix(prefix)?.to_ascii_lowercase())
}

fn number_of(message: &DynamicMessage, name: &str) -> i64 {
    let value = message.get_field_by_name(name);
    let value = value.and_then(|value| value.as_i64().or(value.as_i32().map(i64::from)));
    value.unwrap_or_default()
}

fn time(message: &DynamicMessage) -> Timestamp {
    // The sender may be another version or program: a wrong time must not end the command.
    let ms = number_of(message, "seconds").saturating_mul(1_000);
    Timestamp(ms.saturating_add(number_of(message, "nanos") / 1_000_000))
}

/// Whole milliseconds: no clock of ours measures finer.
fn seconds(message: &DynamicMessage) -> f64 {
    let ms = number_of(message, "seconds").saturating_mul(1_000);
    ms.saturating_add(number_of(message, "nanos") / 1_000_000) as f64 / 1_000.0
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use towpath_proto::{
        time::{duration, timestamp},
        v1,
    };

    use super::*;

    #[test]
    fn a_message_is_written_by_the_rules() {
        let job = v1::Job {
            name: "orders".to_owned(),
            state: v1::JobState::TimedOut.into(),
            since: Some(timestamp(1_763_715_723_007)),
            run_time: Some(duration(1_500)),
            exit_code: Some(0),
            failure: Some(v1::JobFailure {
                kind: v1::FailureKind::TimedOut.into(),
                time_limit: Some(duration(90_000)),
                ..Default::default()
            }),
            needs: vec!["customers".to_owned()],
            outputs: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_string(&of(&job)).unwrap(),
            "{\"name\":\"orders\",\"state\":\"timed_out\",\"since\":\"2025-11-21T09:02:03.007Z\",\
             \"attempt\":0,\"run_time\":1.5,\"exit_code\":0,\
             \"failure\":{\"kind\":\"timed_out\",\"time_limit\":90.0},\
             \"needs\":[\"customers\"],\"irreversible\":false,\"approvals\":[],\
             \"approvals_remaining\":0,\"outputs\":{\"a\":\"1\",\"b\":\"2\"},\"artifacts\":[]}"
        );
    }

    #[test]
    fn an_enum_value_of_a_later_version_is_its_number() {
        let worker = v1::Worker { state: 99, ..Default::default() };
        let written = serde_json::to_value(of(&worker)).unwrap();
        assert_eq!(written["state"], 99);
    }

    /// Every message that a command writes must have a form, with everything in it set.
    #[test]
    fn only_records_and_pieces_of_files_hold_bytes() {
        let bytes: Vec<String> = CONTRACT
            .all_messages()
            .filter(|message| message.package_name() == "towpath.v1")
            .filter(|message| message.fields().any(|field| matches!(field.kind(), Kind::Bytes)))
            .map(|message| message.name().to_owned())
            .collect();
        for name in &bytes {
            let is_stream = name.ends_with("Request") || name.ends_with("Response");
            let known = ["Record", "PipelineFile", "Output", "ArtifactPart"];
            assert!(is_stream || known.contains(&name.as_str()), "{name}");
        }
        assert!(bytes.len() > 5, "{bytes:?}");
    }
}
