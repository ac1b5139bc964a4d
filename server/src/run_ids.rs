//! Ids of runs: random ones, and those that follow from the key of a request.

use towpath_engine::ids::{Digest, RunId};

/// A new id, which sorts nowhere and tells nothing.
pub(crate) fn new_id() -> RunId {
    // Version 7 keeps the time in front; the rest is random but for two fixed bits.
    id_of(&Digest::of(uuid::Uuid::now_v7().as_bytes()))
}

/// 80 bits of `digest` in lower-case Crockford base32.
pub(crate) fn id_of(digest: &Digest) -> RunId {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bits =
        digest.0.iter().take(10).fold(0_u128, |all, byte| (all << 8) | u128::from(*byte));
    let mut text = String::new();
    for _ in 0..16 {
        text.push(char::from(DIGITS[(bits & 31) as usize]));
        bits >>= 5;
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_sixteen_characters_and_never_the_same() {
        let ids: std::collections::BTreeSet<RunId> = (0..1_000).map(|_| new_id()).collect();
        assert_eq!(ids.len(), 1_000);
        assert!(ids.iter().all(|id| id.as_str().len() == 16));
        let firsts: std::collections::BTreeSet<_> =
            ids.iter().map(|id| id.as_str().chars().next()).collect();
        assert!(firsts.len() > 20, "a short prefix tells runs apart");
    }
}
