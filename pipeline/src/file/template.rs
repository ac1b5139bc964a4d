//! What the parts of the reader hand to one another: a job as it is written, what multiplies it, and
//! a job after that.

use std::{collections::BTreeMap, ops::Range};

use super::read::Placed;
use towpath_engine::plan::JobPlan;

/// An environment, each value with its place.
pub(super) type Env = BTreeMap<String, Placed<String>>;

/// A job as it is written.
pub(super) struct Template {
    /// Its key.
    pub name: Placed<String>,
    /// What it says, with nothing filled in and no needs.
    pub plan: JobPlan,
    /// What it needs.
    pub needs: Vec<Placed<String>>,
    /// What multiplies it.
    pub matrix: Option<Matrix>,
    /// The outputs it declares.
    pub outputs: Option<Vec<String>>,
    /// The spans of its parts.
    pub places: Places,
}

/// The spans of the parts of a template.
#[derive(Default)]
pub(super) struct Places {
    pub stage: Range<usize>,
    pub command: Range<usize>,
    pub undo: Range<usize>,
    pub condition: Range<usize>,
    pub resource: Range<usize>,
    pub tags: Range<usize>,
    pub when: Range<usize>,
    pub irreversible: Range<usize>,
    pub env: BTreeMap<String, Range<usize>>,
    pub artifacts: Vec<Range<usize>>,
}

/// The axes of a matrix and the combinations that remain.
pub(super) struct Matrix {
    /// The names of the axes, in file order.
    pub axes: Vec<String>,
    /// The values of each job, in the order of the axes.
    pub combinations: Vec<Vec<String>>,
    /// Where it is in the text, in bytes.
    pub span: Range<usize>,
}

/// A job after its matrix was filled in.
pub(super) struct Job {
    /// What it says. Its needs are filled in once they are understood.
    pub plan: JobPlan,
    /// The template it comes from.
    pub template: usize,
    /// Its needs as written.
    pub needs: Vec<Placed<String>>,
}
