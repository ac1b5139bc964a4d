//! What the fuzzing targets need of this crate's inside. Not part of its interface.

use std::sync::Arc;

use crate::mask::{Mask, Masker};

/// What is shown of output that arrives in `pieces` while `secret` is masked; `None` if it cannot
/// be masked.
pub fn masked(secret: &[u8], pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let mask = Mask::of([("SECRET", secret)]).ok()?;
    let mut masker = Masker::new(Arc::new(mask));
    let mut masked = Vec::new();
    for piece in pieces {
        masker.feed(piece, &mut masked);
    }
    masker.finish(&mut masked);
    Some(masked)
}
