//! A bounded map that removes the least recently used entries.
//!
//! Two generations: what is found in the old one moves to the young one; when the young one is
//! full it becomes the old one, and the old one is removed. No list to keep, no clock.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

/// See the module. Invariant: each generation weighs at most `weight_max` plus one entry.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    weight: usize,
    weight_max: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// An empty map, each generation of which weighs at most `weight_max`.
    pub(crate) fn new(weight_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), weight: 0, weight_max }
    }

    /// The value of `key`, if it was not forgotten. `weigh` says what keeping it costs.
    pub(crate) fn get<Q>(&mut self, key: &Q, weigh: impl Fn(&V) -> usize) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        // Moved, not copied: in both generations it would be weighed twice and outlive its use.
        let (key, value) = self.old.remove_entry(key)?;
        let weight = weigh(&value);
        self.insert(key, value.clone(), weight);
        Some(value)
    }

    /// Remembers `value`, which costs `weight`, under `key`.
    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        // Never an empty generation: one value heavier than the bound is still kept once.
        if self.weight + weight > self.weight_max && !self.young.is_empty() {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        if self.young.insert(key, value).is_none() {
            self.weight += weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_forgotten() {
        let mut recent = Recent::new(2);
        for n in 0..100 {
            recent.insert(n, n, 1);
            assert_eq!(recent.get(&0, |_| 1), Some(0), "after {n}");
        }

        assert_eq!(recent.get(&50, |_| 1), None);
        assert!(recent.young.len() + recent.old.len() <= 4);
    }
}
