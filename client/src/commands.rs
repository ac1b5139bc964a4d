//! One file for each command.

pub(crate) mod approve;
pub(crate) mod autoscale;
#[cfg(feature = "server")]
pub(crate) mod backup;
pub(crate) mod cancel;
pub(crate) mod completions;
pub(crate) mod context;
#[cfg(feature = "server")]
pub(crate) mod demo;
#[cfg(feature = "server")]
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod export;
pub(crate) mod follow;
pub(crate) mod graph;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod pipeline;
#[cfg(feature = "server")]
pub(crate) mod pki;
pub(crate) mod plan;
pub(crate) mod reject;
#[cfg(feature = "server")]
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod retry;
pub(crate) mod run;
pub(crate) mod schema;
#[cfg(feature = "server")]
pub(crate) mod serve;
pub(crate) mod status;
#[cfg(feature = "server")]
pub(crate) mod token;
pub(crate) mod validate;
pub(crate) mod version;
pub(crate) mod watch;
pub(crate) mod why;
pub(crate) mod worker;
pub(crate) mod workers;

use crate::{
    app::{App, CommandResult},
    args::duration,
};
