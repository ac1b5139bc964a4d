//! Opening a log: is it what the mark remembers, and what does the index not know yet?

use std::{collections::HashMap, sync::Arc};

use super::{
    block::{Block, Tail},
    index::{Run, cost_of},
    reader::Reader,
};
use crate::{StoreError, error::Damage};

/// Compares the log with what its mark remembers.
pub(crate) fn check(reader: &Reader, remembered: &Tail, tail: &Tail) -> Result<(), StoreError> {
    if remembered.position > tail.position {
        let (mark, tail) = (remembered.position, tail.position);
        return Err(StoreError::Rollback { mark, tail });
    }
    if remembered.position == 0 {
        return Ok(());
    }
    let block = reader.block_holding(remembered.position)?;
    let found = block.at(remembered.position).map(|record| record.hash);
    if found == Some(remembered.hash) {
        return Ok(());
    }
    Err(StoreError::Damaged { position: remembered.position, what: Damage::MarkDiffers })
}

/// Reads again what the index does not know, up to the `last` block, and verifies it on the way.
pub(crate) fn recover_trail(reader: &Reader, last: &Block) -> Result<(), StoreError> {
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
            trail_block(reader, &block)?;
        }
        next = newest + 1;
    }
    Ok(())
}

/// Adds the runs of `block` to the trail, save those the index knows.
fn trail_block(reader: &Reader, block: &Block) -> Result<(), StoreError> {
    let mut runs: Vec<(&Arc<str>, Run)> = Vec::new();
    let mut run_of = HashMap::new();
    for record in &block.records {
        let index = *run_of.entry(&record.stream).or_insert_with(|| {
            let run = Run { version: record.version, count: 0, block: block.first() };
            runs.push((&record.stream, run));
            runs.len() - 1
        });
        runs[index].1.count += 1;
    }
    for (stream, run) in runs {
        if run.last() > reader.indexed_head(stream)? {
            reader.trail().push(stream, run);
        }
    }
    reader.trail().count(cost_of(block.bytes));
    Ok(())
}
