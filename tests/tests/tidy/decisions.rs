//! Decision pages: each has a number of its own, in its file name and in its first line, and says
//! what was rejected.

use std::{collections::BTreeMap, fs};

use towpath_tests::root;

use crate::none;

#[test]
fn each_decision_has_a_number_of_its_own_and_says_what_was_rejected() {
    let mut pages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut broken = Vec::new();
    for entry in fs::read_dir(root().join("docs/decisions")).expect("the decisions") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name.split('-').next().unwrap_or_default().to_owned();
        let text = fs::read_to_string(&path).expect("a page");
        let title = text.lines().next().unwrap_or_default();
        // Links name the file and sentences the number: the two must not part.
        if !title.starts_with(&format!("# {}.", number.trim_start_matches('0'))) {
            broken.push(format!("{name} begins with `{title}`"));
        }
        // One form: a reader who looks for what else was considered searches for one heading.
        if text.lines().filter(|line| *line == "## Rejected alternatives").count() != 1 {
            broken.push(format!("{name} has no section `Rejected alternatives`"));
        }
        pages.entry(number).or_default().push(name);
    }
    let twice = pages.into_values().filter(|names| names.len() > 1).map(|names| names.join(", "));
    broken.extend(twice);
    none("a decision has one number and rejected alternatives, and a number one decision", broken);
}
