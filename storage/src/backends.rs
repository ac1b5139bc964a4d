//! The backends there are.
//!
//! To add one: write one file with a type that implements [`Backend`], and add one line to
//! [`BACKENDS`]. Names, help and messages follow from the table; nothing else names a backend.
//!
//! ```text
//!                       Backend                    scheme, usage, directory, open
//!              ┌───────────┴────────────┐
//!        a key-value database      a whole log
//!        KvFiles + KvBackend       an EventStore of its own
//!        sled, fjall               memory; a database server, say
//! ```
//!
//! Either way the store has a [`crate::StoreDir`]: the lock of its owner, blobs, spool, snapshots
//! and socket.

use crate::{backend::Backend, kv, memory};

/// Every backend. The first is what a path without a scheme means.
pub const BACKENDS: &[&'static dyn Backend] = &[
    &kv::sled::Sled,
    #[cfg(feature = "fjall")]
    &kv::fjall::Fjall,
    &memory::Memory,
];

/// How the URLs of stores are written: of all `backends`, or only of the durable ones.
pub fn usages(backends: &[&'static dyn Backend], durable_only: bool) -> String {
    let listed = backends.iter().filter(|backend| backend.is_durable() || !durable_only);
    let mut usages: Vec<String> = listed.map(|backend| format!("`{}`", backend.usage())).collect();
    match usages.pop() {
        Some(last) if !usages.is_empty() => format!("{} or {last}", usages.join(", ")),
        Some(only) => only,
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_the_backends_of_the_table() {
        let [first, .., last] = BACKENDS else { panic!("there are several") };

        assert_eq!(usages(BACKENDS, false).split(", ").next().unwrap(), "`sled:PATH`");
        assert!(usages(BACKENDS, false).ends_with(" or `memory:`"));
        assert!(!usages(BACKENDS, true).contains("memory"));
        assert_eq!(usages(&[*first, *last], false), "`sled:PATH` or `memory:`");
        assert_eq!(usages(&[*first], false), "`sled:PATH`");
    }

    #[test]
    fn schemes_differ_and_are_plain_words() {
        let mut schemes: Vec<_> = BACKENDS.iter().map(|backend| backend.scheme()).collect();
        assert!(schemes.iter().all(|scheme| scheme.bytes().all(|byte| byte.is_ascii_lowercase())));
        schemes.sort_unstable();
        schemes.dedup();
        assert_eq!(schemes.len(), BACKENDS.len());
    }
}
