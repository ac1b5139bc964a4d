//! `--at`: what `tow` shows of the past.

use super::{App, TWO};

#[test]
fn a_run_is_shown_as_it_was() {
    let app = App::with(&[("towpath.yml", TWO)]);
    app.ends(0, &["run"]);
    let whole = app.json(0, &["status", "--output", "json"]);
    let tail = whole["position"].as_u64().expect("a position").to_string();

    let now = app.json(0, &["status", "--output", "json", "--at", &tail]);
    assert_eq!((&now["jobs"], &now["outcome"]), (&whole["jobs"], &"succeeded".into()));
    assert_eq!(now["as_of"]["position"].to_string(), tail);
    let begun = app.ends(0, &["status", "--at", "3"]);
    assert!(begun.err.contains("As of position 3 (20"), "{}", begun.err);
    assert!(begun.out.contains("0/2 jobs"), "{}", begun.out);
    assert!(!begun.err.contains("tow resume"), "the past cannot be resumed: {}", begun.err);
    let listed = app.json(0, &["list", "--output", "json", "--at", "3"]);
    assert_eq!(listed[0]["phase"], "running");
    let job = whole["jobs"][0]["name"].as_str().expect("a job");
    let why = app.ends(0, &["why", job, "--at", "3"]);
    assert!(why.err.contains("As of position 3"), "{}", why.err);
    assert!(!why.out.contains("  tow "), "no command changes the past: {}", why.out);
    let none = app.ends(0, &["logs", job, "--at", "3"]);
    assert!(none.err.contains("The job had not begun."), "{}", none.err);
    assert_eq!(app.ends(0, &["export", "--at", "3"]).out, "");
}

#[test]
fn the_plan_of_a_run_is_drawn_as_it_was() {
    let app = App::with(&[("towpath.yml", TWO)]);
    app.ends(0, &["run"]);
    app.write("towpath.yml", &TWO.replace("needs: [customers]", "irreversible: true"));
    app.ends(0, &["resume", "--accept-changes"]);

    let now = app.ends(0, &["graph", "--run", "@latest"]);
    assert_eq!(now.out, "migrate\n  customers  succeeded\n  orders  succeeded, no way back\n");
    let then = app.ends(0, &["graph", "--at", "3"]);
    assert_eq!(then.out, "migrate\n  customers  waiting\n  └─ orders  waiting\n");
    assert!(then.err.contains("As of position 3 (20"), "{}", then.err);
    let json = app.json(0, &["graph", "--at", "3", "--output", "json"]);
    assert_eq!(json["jobs"][1]["state"], "waiting");
    assert_eq!(
        (&json["as_of"]["position"], json["waves"].as_array().unwrap().len()),
        (&3.into(), 2)
    );
    let dot = app.ends(0, &["graph", "--at", "3", "-f", "dot"]);
    assert!(dot.out.contains("j0 -> j1"), "{}", dot.out);

    app.ends(2, &["graph", "towpath.yml", "--at", "3"]);
    app.ends(2, &["graph", "towpath.yml", "--run", "@latest"]);
    let beyond = app.ends(2, &["graph", "--at", "99999"]);
    assert!(beyond.err.contains("error[AT_OUT_OF_RANGE]"), "{}", beyond.err);
}

#[test]
fn a_point_that_the_log_has_not_reached_is_refused() {
    let app = App::with(&[("towpath.yml", TWO)]);
    app.ends(0, &["run"]);

    let beyond = app.ends(2, &["status", "--at", "99999"]);
    assert!(beyond.err.contains("error[AT_OUT_OF_RANGE]"), "{}", beyond.err);
    assert!(beyond.err.contains("`tow events` shows the positions"), "{}", beyond.err);
    let future = app.ends(2, &["list", "--at", "2999-01-01T00:00:00Z"]);
    assert!(future.err.contains("error[AT_OUT_OF_RANGE]"), "{}", future.err);
    app.ends(2, &["status", "--at", "yesterday"]);
    app.ends(2, &["logs", "a", "--at", "3", "--follow"]);
}
