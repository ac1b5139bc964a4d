//! What a server and its clients share beside the contract: values of the engine as messages and
//! back, and how a connection is opened. Nothing is decided here.
//!
//! A crate of its own, so that a `tow` that is built for workers alone contains no server.

pub mod dial;
pub mod read_back;
pub mod views;

/// The domain of every `google.rpc.ErrorInfo` that a server sends.
pub const ERROR_DOMAIN: &str = "towpath";
