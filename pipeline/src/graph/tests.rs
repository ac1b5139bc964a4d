//! Graphs of plans: their order, waves, cycles and longest chain.

use proptest::prelude::*;

use super::*;

pub(super) fn plan(stages: &[&str], jobs: &[(&str, &str, &[&str])]) -> Plan {
    let job = |(name, stage, needs): &(&str, &str, &[&str])| {
        let mut job = JobPlan::new(name, stage, "true");
        job.needs = needs.iter().map(|need| (*need).into()).collect();
        job
    };
    Plan {
        pipeline: "shop".to_owned(),
        stages: stages.iter().map(|stage| (*stage).into()).collect(),
        jobs: jobs.iter().map(job).collect(),
        timeout_ms: None,
    }
}

fn sample() -> Plan {
    plan(
        &["one", "two"],
        &[
            ("late", "two", &["b"]),
            ("c", "one", &["a", "b"]),
            ("b", "one", &["a"]),
            ("a", "one", &[]),
            ("free", "one", &[]),
        ],
    )
}

fn words(names: &[JobName]) -> Vec<&str> {
    names.iter().map(JobName::as_str).collect()
}

#[test]
fn jobs_are_ordered_by_needs_then_stage_then_file() {
    let plan = sample();
    let graph = Graph::of(&plan);

    let order: Vec<&str> =
        graph.order().into_iter().map(|number| graph.name(number).as_str()).collect();

    assert_eq!(order, ["a", "b", "c", "free", "late"]);
    assert_eq!(graph.needs(1).collect::<Vec<_>>(), [3, 2]);
}

#[test]
fn waves_hold_what_can_run_together() {
    let plan = sample();
    let waves = Graph::of(&plan).waves();
    let waves: Vec<(&str, Vec<&str>)> =
        waves.iter().map(|wave| (wave.stage.as_str(), words(&wave.jobs))).collect();
    assert_eq!(
        waves,
        [("one", vec!["a", "free"]), ("one", vec!["b"]), ("one", vec!["c"]), ("two", vec!["late"]),]
    );
}

#[test]
fn the_critical_path_takes_the_barrier_into_account() {
    let plan = sample();
    let estimate = |name: &JobName| match name.as_str() {
        "free" => 100,
        "late" => 7,
        _ => 10,
    };

    let path = Graph::of(&plan).critical_path(estimate);

    assert_eq!((words(&path.jobs), path.total_ms), (vec!["free", "late"], 107));
    let path = Graph::of(&plan).critical_path(|_| 1);
    assert_eq!((words(&path.jobs), path.total_ms), (vec!["a", "b", "c", "late"], 4));
    assert_eq!(Graph::of(&plan).critical_path(|_| u64::MAX).total_ms, u64::MAX);
}

#[test]
fn needers_are_found_through_others() {
    let mut plan = sample();
    plan.jobs[2].irreversible = true;
    let graph = Graph::of(&plan);
    assert_eq!(words(&graph.transitive_dependents("a")), ["b", "c", "late"]);
    assert_eq!(words(&graph.transitive_dependents("late")), [""; 0]);
    assert_eq!(words(&graph.transitive_dependents("nobody")), [""; 0]);
    assert_eq!(words(&graph.points_of_no_return()), ["b"]);
    assert!(graph.is_before(3, 0) && !graph.is_before(4, 0) && !graph.is_before(0, 3));
}

#[test]
fn every_knot_shows_its_shortest_circle_once() {
    let plan = plan(
        &["s"],
        &[
            ("a", "s", &["b"]),
            ("b", "s", &["c"]),
            ("c", "s", &["d", "a"]),
            ("d", "s", &["c"]),
            ("self", "s", &["self"]),
            ("x", "s", &["y"]),
            ("y", "s", &["x"]),
            ("behind", "s", &["x"]),
        ],
    );
    let graph = Graph::of(&plan);
    assert_eq!(graph.cycles(), [vec![2, 3], vec![4], vec![5, 6]]);
    assert_eq!(graph.order(), [0; 0]);
}

#[test]
fn a_long_chain_and_a_long_circle_need_no_stack() {
    let names: Vec<String> = (0..50_000).map(|n| format!("j{n}")).collect();
    let mut plan = plan(&["s"], &[]);
    for (at, name) in names.iter().enumerate() {
        let mut job = JobPlan::new(name, "s", "x");
        job.needs = names.get(at + 1).map(|need| need.as_str().into()).into_iter().collect();
        plan.jobs.push(job);
    }
    assert_eq!(Graph::of(&plan).order().len(), 50_000);
    plan.jobs[49_999].needs = vec!["j0".into()];
    assert_eq!(Graph::of(&plan).cycles()[0].len(), 50_000);
}

proptest! {
    #[test]
    fn needs_come_first_in_every_order(
        edges in prop::collection::vec((0_usize..40, 0_usize..40), 0..200),
    ) {
        let names: Vec<String> = (0..40).map(|n| format!("j{n}")).collect();
        let mut plan = plan(&["s0", "s1", "s2"], &[]);
        for (at, name) in names.iter().enumerate() {
            // Numbers run against the edges, so that file order alone is never right.
            plan.jobs.push(JobPlan::new(name, ["s2", "s1", "s0"][at * 3 / 40], "x"));
        }
        for (a, b) in edges {
            let (low, high) = (a.min(b), a.max(b));
            if low != high {
                plan.jobs[low].needs.push(names[high].as_str().into());
            }
        }

        let graph = Graph::of(&plan);
        let order = graph.order();

        prop_assert_eq!(order.len(), 40);
        let place = |number: usize| order.iter().position(|at| *at == number).unwrap();
        for number in 0..40 {
            for need in graph.needs(number) {
                prop_assert!(place(need) < place(number));
                prop_assert!(graph.is_before(need, number));
            }
        }
        prop_assert!(graph.cycles().is_empty());
        let in_waves: usize = graph.waves().iter().map(|wave| wave.jobs.len()).sum();
        prop_assert_eq!(in_waves, 40);
    }
}
