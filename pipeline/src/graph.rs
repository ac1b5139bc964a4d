//! A plan as a graph: in which order its jobs can run, what waits for what, and what takes
//! longest. How it is drawn is in `drawing`.
//!
//! An edge leads from a need to the job that needs it. Stages are not edges: they are barriers, and
//! every question that they matter to takes them into account by itself.

pub mod drawing;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
};

use petgraph::{
    Direction,
    algo::kosaraju_scc,
    graph::{DiGraph, NodeIndex},
};

use towpath_engine::{
    ids::{JobName, StageName},
    plan::{JobPlan, Plan},
};

/// In a larger knot of cycles the shortest one is not looked for everywhere, only through the
/// first job.
const KNOT_SEARCHED_MAX: usize = 500;

/// The graph of a plan. Jobs are numbered from 0 in the order of the plan.
pub struct Graph<'p> {
    plan: &'p Plan,
    numbers: HashMap<&'p str, usize>,
    stages: Vec<usize>,
    edges: DiGraph<(), ()>,
    /// What is said of each job beside the plan, by number. Empty: nothing.
    notes: Vec<String>,
}

/// Jobs that can run at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wave {
    /// Their stage.
    pub stage: StageName,
    /// The jobs, in file order.
    pub jobs: Vec<JobName>,
}

/// The chain of jobs that a run cannot be shorter than.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CriticalPath {
    /// The jobs, first to last.
    pub jobs: Vec<JobName>,
    /// Their time together, in milliseconds.
    pub total_ms: u64,
}

impl<'p> Graph<'p> {
    /// The graph of `plan`. A need that is no job of the plan is omitted.
    pub fn of(plan: &'p Plan) -> Self {
        let mut numbers = HashMap::with_capacity(plan.jobs.len());
        for (number, job) in plan.jobs.iter().enumerate() {
            // The first of two jobs with one name; the check of names reports the second.
            numbers.entry(job.name.as_str()).or_insert(number);
        }
        let places: HashMap<&StageName, usize> =
            plan.stages.iter().enumerate().map(|(at, stage)| (stage, at)).collect();
        // An unknown stage sorts last, so that the graph of a faulty file can still be checked for
        // cycles.
        let stage = |job: &JobPlan| places.get(&job.stage).copied().unwrap_or(usize::MAX);
        let stages = plan.jobs.iter().map(stage).collect();
        let needs = plan.jobs.iter().map(|job| job.needs.len()).sum();
        let mut edges = DiGraph::with_capacity(plan.jobs.len(), needs);
        // All nodes before the edges, so that the number of a job is the number of its node.
        for _ in &plan.jobs {
            edges.add_node(());
        }
        for (number, job) in plan.jobs.iter().enumerate() {
            // Neighbours come out last in, first out; so they come out in the order of `needs`.
            for need in job.needs.iter().rev() {
                if let Some(need) = numbers.get(need.as_str()) {
                    edges.add_edge(NodeIndex::new(*need), NodeIndex::new(number), ());
                }
            }
        }
        Self { plan, numbers, stages, edges, notes: Vec::new() }
    }

    /// The same graph with a note for each job, in the order of the plan, such as its state in a
    /// run. Drawings in text show it.
    #[must_use]
    pub fn with_notes(mut self, notes: impl Iterator<Item = String>) -> Self {
        self.notes = notes.collect();
        self
    }

    /// What is said of a job beside the plan; empty: nothing.
    pub fn note(&self, number: usize) -> &str {
        self.notes.get(number).map_or("", String::as_str)
    }

    /// The plan.
    pub fn plan(&self) -> &'p Plan {
        self.plan
    }

    /// The job of a number.
    pub fn job(&self, number: usize) -> &'p JobPlan {
        &self.plan.jobs[number]
    }

    /// The name of a number.
    pub fn name(&self, number: usize) -> &'p JobName {
        &self.plan.jobs[number].name
    }

    /// The number of a name.
    pub fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    /// The stage of a job, counted from 0.
    pub fn stage(&self, number: usize) -> usize {
        self.stages[number]
    }

    /// What a job needs, in the order of the plan.
    pub fn needs(&self, number: usize) -> impl Iterator<Item = usize> {
        self.beside(number, Direction::Incoming)
    }

    /// What needs a job.
    pub fn dependents(&self, number: usize) -> impl Iterator<Item = usize> {
        self.beside(number, Direction::Outgoing)
    }

    fn beside(&self, number: usize, direction: Direction) -> impl Iterator<Item = usize> {
        self.edges.neighbors_directed(NodeIndex::new(number), direction).map(NodeIndex::index)
    }

    /// The jobs in an order in which they could run one by one: needs first, earlier stages
    /// first, and otherwise as in the file. Jobs on a cycle, and behind one, are omitted.
    pub fn order(&self) -> Vec<usize> {
        let count = self.plan.jobs.len();
        // Kahn's algorithm: jobs on a cycle never get to 0 and are missing from the order, which is
        // how `cycles` notices them.
        let mut open: Vec<usize> = (0..count).map(|number| self.needs(number).count()).collect();
        // By stage and then by file order, so that the result does not depend on the heap.
        let key = |number: usize| Reverse((self.stages[number], number));
        let mut ready: BinaryHeap<_> =
            (0..count).filter(|number| open[*number] == 0).map(key).collect();
        let mut order = Vec::with_capacity(count);
        while let Some(Reverse((_, number))) = ready.pop() {
            order.push(number);
            for dependent in self.dependents(number) {
                open[dependent] -= 1;
                if open[dependent] == 0 {
                    ready.push(key(dependent));
                }
            }
        }
        order
    }

    /// Groups of jobs, each of which can start when the one before has ended.
    pub fn waves(&self) -> Vec<Wave> {
        let order = self.order();
        let mut depth = vec![0_usize; self.plan.jobs.len()];
        let mut waves: Vec<((usize, usize), Vec<usize>)> = Vec::new();
        let mut places: HashMap<(usize, usize), usize> = HashMap::new();
        for number in order {
            let stage = self.stages[number];
            // Needs of earlier stages do not add to the depth: the barrier between stages waits for
            // them anyway.
            let same = self.needs(number).filter(|need| self.stages[*need] == stage);
            depth[number] = same.map(|need| depth[need] + 1).max().unwrap_or(0);
            let key = (stage, depth[number]);
            let place = *places.entry(key).or_insert_with(|| {
                waves.push((key, Vec::new()));
                waves.len() - 1
            });
            waves[place].1.push(number);
        }
        waves.sort_by_key(|(key, _)| *key);
        let wave = |(_, mut numbers): (_, Vec<usize>)| {
            // In file order again: within a wave the order of `order` has no meaning to a reader.
            numbers.sort_unstable();
            let stage = self.job(numbers[0]).stage.clone();
            Wave { stage, jobs: self.names(numbers) }
        };
        waves.into_iter().map(wave).collect()
    }

    /// The longest chain of jobs, if each takes as long as estimated.
    ///
    /// A stage begins when the one before has ended, so the chain is the longest of every stage,
    /// one after the other.
    pub fn critical_path(&self, estimate_ms: impl Fn(&JobName) -> u64) -> CriticalPath {
        let mut ends = vec![0_u64; self.plan.jobs.len()];
        let mut before: Vec<Option<usize>> = vec![None; self.plan.jobs.len()];
        let mut last: HashMap<usize, usize> = HashMap::new();
        for number in self.order() {
            let stage = self.stages[number];
            // As in `waves`: the time of an earlier stage is counted as that of its own longest
            // chain.
            let same = self.needs(number).filter(|need| self.stages[*need] == stage);
            before[number] = same.max_by_key(|need| (ends[*need], Reverse(*need)));
            let start = before[number].map_or(0, |need| ends[need]);
            // Saturating, because estimates of many jobs may be as long as a `timeout` allows.
            ends[number] = start.saturating_add(estimate_ms(self.name(number)));
            let longest = last.entry(stage).or_insert(number);
            // Strictly greater, so that of two chains of one length the first in the file is named.
            if ends[number] > ends[*longest] {
                *longest = number;
            }
        }
        let mut lasts: Vec<(usize, usize)> = last.into_iter().collect();
        lasts.sort_unstable();
        let mut path = CriticalPath::default();
        for (_, last) in lasts {
            path.total_ms = path.total_ms.saturating_add(ends[last]);
            let chain: Vec<usize> = std::iter::successors(Some(last), |at| before[*at]).collect();
            path.jobs.extend(chain.into_iter().rev().map(|number| self.name(number).clone()));
        }
        path
    }

    /// The irreversible jobs, in order.
    pub fn points_of_no_return(&self) -> Vec<JobName> {
        let order = self.order().into_iter();
        self.names(order.filter(|number| self.job(*number).irreversible))
    }

    /// Everything that needs a job, directly or through others, in order.
    pub fn transitive_dependents(&self, name: &str) -> Vec<JobName> {
        let Some(number) = self.number(name) else { return Vec::new() };
        let mut reached: HashSet<usize> = HashSet::new();
        let mut open = vec![number];
        while let Some(number) = open.pop() {
            open.extend(self.dependents(number).filter(|dependent| reached.insert(*dependent)));
        }
        let order = self.order().into_iter();
        self.names(order.filter(|other| *other != number && reached.contains(other)))
    }

    /// Whether `job` needs `other`, directly or through others.
    pub fn is_before(&self, other: usize, job: usize) -> bool {
        // The direct need is the usual case, and needs no search.
        if self.needs(job).any(|need| need == other) {
            return true;
        }
        let mut reached: HashSet<usize> = HashSet::new();
        let mut open = vec![job];
        while let Some(number) = open.pop() {
            for need in self.needs(number) {
                if need == other {
                    return true;
                }
                if reached.insert(need) {
                    open.push(need);
                }
            }
        }
        false
    }

    /// For every knot of jobs that wait for each other, its shortest circle: each job needs the
    /// next, and the last needs the first.
    pub fn cycles(&self) -> Vec<Vec<usize>> {
        // Almost every file has no cycle, and the order is cheaper than the search for one.
        if self.order().len() == self.plan.jobs.len() {
            return Vec::new();
        }
        // Kosaraju's way keeps no call per job on the stack, which Tarjan's does.
        let mut cycles: Vec<Vec<usize>> = kosaraju_scc(&self.edges)
            .into_iter()
            .map(|knot| knot.into_iter().map(NodeIndex::index).collect::<Vec<_>>())
            // A component of one job is a cycle only if the job needs itself.
            .filter(|knot| knot.len() > 1 || self.needs(knot[0]).any(|need| need == knot[0]))
            .filter_map(|mut knot| {
                knot.sort_unstable();
                self.shortest_circle(&knot)
            })
            .collect();
        cycles.sort();
        cycles
    }

    fn shortest_circle(&self, knot: &[usize]) -> Option<Vec<usize>> {
        // The shortest circle from each start costs the product of both; in a large knot any circle
        // helps as much.
        let searched = if knot.len() > KNOT_SEARCHED_MAX { 1 } else { knot.len() };
        let members: HashSet<usize> = knot.iter().copied().collect();
        let circles = knot[..searched].iter().filter_map(|start| self.circle(*start, &members));
        circles.min_by_key(Vec::len)
    }

    /// The shortest circle through `start`, following needs.
    fn circle(&self, start: usize, members: &HashSet<usize>) -> Option<Vec<usize>> {
        let mut came_from: HashMap<usize, usize> = HashMap::new();
        let mut open = VecDeque::from([start]);
        while let Some(number) = open.pop_front() {
            for need in self.needs(number).filter(|need| members.contains(need)) {
                if need == start {
                    let back = |at: &usize| came_from.get(at).copied();
                    let mut circle: Vec<usize> =
                        std::iter::successors(Some(number), back).collect();
                    circle.reverse();
                    return Some(circle);
                }
                came_from.entry(need).or_insert_with(|| {
                    open.push_back(need);
                    number
                });
            }
        }
        None
    }

    fn names(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<JobName> {
        numbers.into_iter().map(|number| self.name(number).clone()).collect()
    }
}

#[cfg(test)]
mod tests;
