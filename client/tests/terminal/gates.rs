//! What an approver is shown at a gate, and which answers open it.

use std::fs;

use crate::pty::Terminal;

/// A folder whose pipeline has one gate, with `script` behind it.
fn with_gate(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let script: String = script.lines().map(|line| format!("      {line}\n")).collect();
    let yaml = format!(
        "stages: [a, b]\njobs:\n  first: {{stage: a, command: 'true'}}\n  switch:\n    stage: b\n    \
         needs: [first]\n    when: manual\n    command: |\n{script}"
    );
    fs::write(folder.path().join("towpath.yml"), yaml).expect("a file");
    folder
}

#[test]
fn an_approver_sees_every_line_of_a_script_and_every_column() {
    let wide = format!("echo {}THE-END", "wide ".repeat(40));
    let script = format!("{wide}\n:\n:\n:\n:\necho rm -rf /\n");
    let folder = with_gate(&script);
    let mut terminal = Terminal::tow(folder.path(), &["run"], &[]);

    terminal.expect("Open the gate? [y]es, [n]o, or Enter to leave it: ");

    for wanted in ["6 │ echo rm -rf /", "THE-END"] {
        assert!(terminal.written.contains(wanted), "no {wanted:?} in:\n{}", terminal.written);
    }
    terminal.types("\n");
    assert_eq!(terminal.ends(), 12);
}

/// 500 lines, each with its number.
fn long_script() -> String {
    (1..=500).map(|number| format!(": line-{number}-\n")).collect()
}

fn is_whole(text: &str) -> bool {
    (1..=500).all(|number| text.contains(&format!("line-{number}-")))
}

#[test]
fn a_script_longer_than_the_screen_goes_through_the_pager_before_the_question() {
    let folder = with_gate(&long_script());
    let paged = folder.path().join("paged");
    let pager = format!("cat >{}", paged.display());
    let mut terminal = Terminal::tow(folder.path(), &["run"], &[("PAGER", &pager)]);

    terminal.expect("Open the gate? ");

    assert!(is_whole(&fs::read_to_string(&paged).expect("what was paged")));
    assert!(!terminal.written.contains("line-250-"), "once is enough");
    terminal.types("y\n");
    assert_eq!(terminal.ends(), 0, "{}", terminal.written);
}

#[test]
fn without_a_pager_all_of_it_is_printed_before_the_question() {
    let folder = with_gate(&long_script());
    let pager = folder.path().join("none").display().to_string();
    let mut terminal = Terminal::tow(folder.path(), &["run"], &[("PAGER", &pager)]);

    terminal.expect("Open the gate? ");

    assert!(is_whole(&terminal.written), "{}", terminal.written);
    terminal.types("n\n");
    assert_eq!(terminal.ends(), 13);
}

#[test]
fn where_not_all_was_shown_the_name_of_the_job_must_be_typed() {
    let folder = with_gate("echo ${{ needs.first.outputs.other }}\n");
    let mut terminal = Terminal::tow(folder.path(), &["run"], &[]);

    terminal.expect("Type `switch` to open it");
    let asked = terminal.written.len();
    terminal.types("y\n");
    terminal.expect_after(asked, "Type `switch` to open it");
    terminal.types("switch\n");

    // It opens, and then there is nothing that could be run.
    assert_eq!(terminal.ends(), 10, "{}", terminal.written);
    assert!(terminal.written.contains("could not start"), "{}", terminal.written);
}
