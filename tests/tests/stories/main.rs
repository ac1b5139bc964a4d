//! Stories over the whole server: a real server, real gRPC over a pipe, a store in memory, and a
//! clock that stands still. One file for each promise.

mod anywhere;
mod cancelling;
mod clocks;
mod durability;
mod failures;
mod following;
mod four_eyes;
mod gates;
mod hostile;
mod identity;
mod machines;
mod many;
mod outputs;
mod processes;
mod resuming;
mod retries;
mod sessions;
mod stages;
mod waiting;
mod watching;
