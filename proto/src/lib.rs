//! The gRPC contract of Towpath and what is generated from it. Nothing is decided here: messages
//! are turned into commands, and views into messages, by `towpath-server`.

pub mod streams;
pub mod time;
pub mod words;

pub use prost_types;

/// Version 1 of the contract.
pub mod v1 {
    tonic::include_proto!("towpath.v1");
}

/// What KEDA, the autoscaler of Kubernetes, asks of an external scaler.
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

/// The compiled contract, for gRPC reflection and for programs that read messages by their form.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));
