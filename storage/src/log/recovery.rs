//! What is done when a log is opened: it is compared with its high-water mark, and what the index
//! does not hold yet is read again.

use std::{collections::HashMap, sync::Arc};

use super::{
    block::{Block, Tail},
    index::{Extent, cost_of},
    reader::Reader,
};
use crate::{StoreError, error::Damage};

/// Compares the log with its high-water mark.
pub(crate) fn check_high_water(
    reader: &Reader,
    remembered: &Tail,
    tail: &Tail,
) -> Result<(), StoreError> {
    // Shorter than what was acknowledged: the database lost its end and opened without complaint.
    if remembered.position > tail.position {
        let (high_water, tail) = (remembered.position, tail.position);
        return Err(StoreError::Rollback { high_water, tail });
    }
    // Nothing was acknowledged, so there is nothing that could differ.
    if remembered.position == 0 {
        return Ok(());
    }
    // Longer is fine: the mark is synced every few commits only, and a commit may have become
    // durable without being answered. But the record the mark names must be the same one.
    let block = reader.block_holding(remembered.position)?;
    let found = block.at(remembered.position).map(|record| record.hash);
    if found == Some(remembered.hash) {
        return Ok(());
    }
    Err(StoreError::Damaged { position: remembered.position, what: Damage::HighWaterDiffers })
}

/// Reads again what the index does not know, up to the `last` block, and verifies it on the way.
pub(crate) fn recover_unindexed(reader: &Reader, last: &Block) -> Result<(), StoreError> {
    // The newest block says from where on the index is not complete. It is the only one that
    // knows: older blocks were written when the index had come less far.
    let mut before: Option<Tail> = None;
    let mut next = last.indexed_below;
    while next <= last.first() {
        let blocks = reader.blocks_from(next)?;
        let hole = || StoreError::Damaged { position: next, what: Damage::Hole };
        // Bounded by what the writer lets the log run ahead of its index, not by the log.
        let newest = blocks.last().ok_or_else(hole)?.tail().position;
        for block in blocks {
            let position = before.map_or(last.indexed_below, |tail| tail.position + 1);
            // A gap between keys is a missing block; a block that is there was verified, so
            // its own hashes say nothing about its neighbours.
            if block.first() != position {
                return Err(StoreError::Damaged { position, what: Damage::Hole });
            }
            if before.is_some_and(|tail| tail.hash != block.before) {
                return Err(StoreError::Damaged { position, what: Damage::HashDiffers });
            }
            before = Some(block.tail());
            add_unindexed(reader, &block)?;
        }
        next = newest + 1;
    }
    Ok(())
}

/// Adds the extents of `block` to the unindexed tail, except those the index knows.
fn add_unindexed(reader: &Reader, block: &Block) -> Result<(), StoreError> {
    let mut extents: Vec<(&Arc<str>, Extent)> = Vec::new();
    let mut extent_of = HashMap::new();
    for record in &block.records {
        let index = *extent_of.entry(&record.stream).or_insert_with(|| {
            let extent = Extent { version: record.version, count: 0, block: block.first() };
            extents.push((&record.stream, extent));
            extents.len() - 1
        });
        extents[index].1.count += 1;
    }
    for (stream, extent) in extents {
        // Some streams of a block were indexed already: those that were busy enough. Added again,
        // their extents would be written a second time, under a key the first entry has.
        if extent.last() > reader.indexed_head(stream)? {
            reader.unindexed().push(stream, extent);
        }
    }
    reader.unindexed().add_cost(cost_of(block.bytes));
    Ok(())
}
