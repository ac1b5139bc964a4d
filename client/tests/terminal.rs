//! `tow` at a terminal: what a person sees, and what their keys do.

#[path = "terminal/ends.rs"]
mod ends;
#[path = "terminal/gates.rs"]
mod gates;
#[path = "terminal/logs.rs"]
mod logs;
#[path = "terminal/pty.rs"]
mod pty;
#[path = "terminal/slips.rs"]
mod slips;
#[path = "terminal/watching.rs"]
mod watching;
