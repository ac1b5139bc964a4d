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
    if remembered.position > tail.position {
        let (high_water, tail) = (remembered.position, tail.position);
        return Err(StoreError::Rollback { high_water, tail });
    }
    if remembered.position == 0 {
        return Ok(());
    }
    let block = reader.block_holding(remembered.position)?;
    let found = block.at(remembered.position).map(|record| record.hash);
    if found == Some(remembered.hash) {
        return Ok(());
    }
    Err(StoreError::Damaged { position: remembered.position, what: Damage::HighWaterDiffers })
}

/// Reads again what the index does not know, up to the `last` block, and verifies it on the way.
pub(crate) fn recover_unindexed(reader: &Reader, last: &Block) -> Result<(), StoreError> {
    let mut before: Option<Tail> = None;
    let mut next = last.indexed_below;
    while next <= last.first() {
        let blocks = reader.blocks_from(next)?;
        let hole = || StoreError::Damaged { position: next, what: Damage::Hole };
        let newest = blocks.last().ok_or_else(hole)?.tail().position;
        for block in blocks {
            let position = before.map_or(last.indexed_below, |tail| tail.position + 1);
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
        if extent.last() > reader.indexed_head(stream)? {
            reader.unindexed().push(stream, extent);
        }
    }
    reader.unindexed().add_cost(cost_of(block.bytes));
    Ok(())
}
