//! Where tests that leave something to chance have it from: a seed, which they print.

use std::{
    env,
    hash::{BuildHasher as _, RandomState},
    ops::Range,
};

/// Numbers that follow from a seed. Good enough for moments and names.
#[derive(Debug)]
pub struct Chance {
    /// What it began with.
    pub seed: u64,
    state: u64,
}

impl Chance {
    /// From the seed in `TOW_SEED`, or from a new one.
    pub fn new() -> Self {
        let asked = env::var("TOW_SEED").ok().and_then(|text| text.parse().ok());
        let seed = asked.unwrap_or_else(|| RandomState::new().hash_one(0)).max(1);
        Self { seed, state: seed }
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % bound
    }

    /// A number of `range`, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// Brings `all` into another order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            all.swap(last, other);
        }
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}
