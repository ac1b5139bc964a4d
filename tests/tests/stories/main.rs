//! Stories over the whole server: a real server, real gRPC over a pipe, a store in memory, and a
//! clock that only the test moves. One file for each promise.

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
mod reading_at;
mod resuming;
mod retries;
mod sessions;
mod stages;
mod unreadable;
mod unresponsive;
mod waiting;
mod watching;

/// Not a story: the process that keeps the scripts of real workers.
#[test]
fn keeps_the_scripts_of_other_tests() {
    towpath_tests::keep_scripts_if_asked();
}
