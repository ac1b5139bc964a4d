//! The map `gate` of a manual job: who opens it.

use super::{
    read::{Placed, Reader},
    tree::Node,
};
use crate::{
    diagnostics::{Diagnostic, shown},
    schema::{GATE_KEYS, GATE_NOT},
};
use towpath_engine::{
    gate::{
        APPROVERS_MAX, Approver, EXPIRES_MS_MAX, EXPIRES_MS_MIN, Excluded, GatePolicy, PEOPLE_MAX,
        ROLES, person,
    },
    ids::{Actor, ActorKind},
    time::duration_words,
};

/// Who opens the gate. A map that says nothing beyond the defaults is none.
pub(super) fn gate<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<GatePolicy> {
    let fields = reader.fields(node, &GATE_KEYS, "`gate`", &node.span)?;
    let mut policy = GatePolicy::default();
    if let Some(node) = fields.get("approvers") {
        policy.approvers = approvers(reader, node);
    }
    if let Some(node) = fields.get("min")
        && let Some(min) = reader.count(node, "`min`", 1, PEOPLE_MAX)
    {
        policy.min = min;
        // After `approvers`, which it compares with.
        enough(reader, &policy, node);
    }
    for word in fields.get("not").map(|node| reader.texts(node, "`not`")).unwrap_or_default() {
        policy.not.extend(excluded(reader, &word));
    }
    if let Some(node) = fields.get("expires") {
        policy.expires_ms = expires(reader, node);
    }
    // `gate: {}` says nothing beyond `when: manual`; without a policy fewer rules apply to names,
    // and no addresses are recorded.
    (policy != GatePolicy::default()).then_some(policy)
}

fn approvers<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Vec<Approver> {
    let words = reader.names(node, "an entry of `approvers`");
    if words.len() > APPROVERS_MAX {
        let message = format!("`approvers` has {} entries; at most {APPROVERS_MAX}", words.len());
        reader.error("VALUE_RANGE", &node.span, message);
    }
    let mut all = Vec::new();
    for word in words {
        if let Some(approver) = approver(reader, &word) {
            if all.contains(&approver) {
                let message = format!("`{}` is listed twice", shown(&word.value));
                reader.error("NAME_DUPLICATE", &word.span, message);
            } else {
                all.push(approver);
            }
        }
    }
    all
}

fn approver(reader: &mut Reader<'_>, word: &Placed<String>) -> Option<Approver> {
    if let Some(role) = word.value.strip_prefix("role:") {
        if ROLES.contains(&role) {
            return Some(Approver::Role(role.to_owned()));
        }
        let message = format!("unknown role `{}`", shown(role));
        let near = reader.did_you_mean(role, ROLES);
        let help = near.unwrap_or_else(|| format!("the roles are `{}`", ROLES.join("`, `")));
        reader.found.push(Diagnostic::error("VALUE_UNKNOWN", &word.span, message).help(help));
        return None;
    }
    // A name that looks like another one, or that a matrix fills in, would name a person whom no
    // reader of the file sees.
    let plain = word.value.is_ascii() && !word.value.contains("${{");
    let (message, help) = match word.value.parse::<Actor>() {
        Ok(actor) if actor.kind == ActorKind::Human && plain => {
            return Some(Approver::Person(actor));
        }
        Ok(actor) if plain => (
            format!("`{}` is not a valid person", shown(&actor.to_string())),
            "a gate is opened by people",
        ),
        Ok(_) | Err(_) => (
            format!("`{}` does not name a person or a role", shown(&word.value)),
            "write `role:approver` or `human:ana`, in ASCII and with nothing to fill in",
        ),
    };
    reader.found.push(Diagnostic::error("NAME_MALFORMED", &word.span, message).help(help));
    None
}

/// A gate that only named people may open wants no more of them than there are.
fn enough<'t>(reader: &mut Reader<'t>, policy: &GatePolicy, min: &Node<'t>) {
    let mut people = std::collections::BTreeSet::new();
    for approver in &policy.approvers {
        match approver {
            // How many people have a role is known to the tokens only, and changes.
            Approver::Role(_) => return,
            Approver::Person(actor) => people.insert(person(actor)),
        };
    }
    if !people.is_empty() && people.len() < policy.min as usize {
        let message =
            format!("`min` is {}, but `approvers` names {} people", policy.min, people.len());
        reader.error("VALUE_RANGE", &min.span, message);
    }
}

fn excluded(reader: &mut Reader<'_>, word: &Placed<String>) -> Option<Excluded> {
    let known = [Excluded::Requester, Excluded::Author];
    let found = known.into_iter().find(|excluded| excluded.word() == word.value);
    if found.is_none() {
        let message = format!("`not` cannot be `{}`", shown(&word.value));
        let near = reader.did_you_mean(&word.value, GATE_NOT);
        let help = near.unwrap_or_else(|| format!("`not` is `{}`", GATE_NOT.join("`, `")));
        reader.found.push(Diagnostic::error("VALUE_UNKNOWN", &word.span, message).help(help));
    }
    found
}

fn expires<'t>(reader: &mut Reader<'t>, node: &Node<'t>) -> Option<u64> {
    let ms = reader.duration(node, "`expires`", 0)?;
    if !(EXPIRES_MS_MIN..=EXPIRES_MS_MAX).contains(&ms) {
        let bounds = [EXPIRES_MS_MIN, EXPIRES_MS_MAX].map(duration_words).join(" to ");
        reader.error("VALUE_RANGE", &node.span, format!("`expires` is {bounds}"));
        return None;
    }
    Some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::parse;

    fn file(options: &str) -> String {
        format!("stages: [s]\njobs:\n  a: {{stage: s, command: x, {options}}}\n")
    }

    #[test]
    fn a_gate_arrives_in_the_plan() {
        let policy = |gate: &str| {
            let text = file(&format!("when: manual, gate: {gate}"));
            parse("t", &text).unwrap_or_else(|e| panic!("{e}")).plan.jobs[0].gate.clone()
        };
        assert_eq!(
            policy(
                "{approvers: ['role:approver', 'human:ana'], min: 2, not: [requester, author], expires: 4h}"
            ),
            Some(GatePolicy {
                approvers: vec![
                    Approver::Role("approver".into()),
                    Approver::Person(Actor::human("ana"))
                ],
                min: 2,
                not: vec![Excluded::Requester, Excluded::Author],
                expires_ms: Some(14_400_000),
            })
        );
        assert_eq!(policy("{}"), None);
        assert_eq!(policy("{min: 1}"), None);
        assert_eq!(policy("{not: author}").unwrap().not, [Excluded::Author]);
    }

    #[test]
    fn every_problem_is_reported_with_its_place() {
        for (options, expected) in [
            ("gate: {min: 2}", "GATE_POINTLESS 3:29"),
            ("when: always, gate: {}", "GATE_POINTLESS 3:43"),
            ("when: manual, gate: 2", "VALUE_TYPE 3:49"),
            ("when: manual, gate: {mim: 2}", "KEY_UNKNOWN 3:50"),
            ("when: manual, gate: {min: 0}", "VALUE_RANGE 3:55"),
            ("when: manual, gate: {min: 17}", "VALUE_RANGE 3:55"),
            ("when: manual, gate: {min: two}", "VALUE_TYPE 3:55"),
            ("when: manual, gate: {min: 2, approvers: ['human:a']}", "VALUE_RANGE 3:55"),
            ("when: manual, gate: {min: 2, approvers: ['human:a', 'human:A']}", "VALUE_RANGE 3:55"),
            ("when: manual, gate: {approvers: ['human:a', 'human:a']}", "NAME_DUPLICATE 3:73"),
            ("when: manual, gate: {approvers: ['role:aprover']}", "VALUE_UNKNOWN 3:62"),
            ("when: manual, gate: {approvers: ['agent:a']}", "NAME_MALFORMED 3:62"),
            ("when: manual, gate: {approvers: ['service:a']}", "NAME_MALFORMED 3:62"),
            ("when: manual, gate: {approvers: ['worker:a']}", "NAME_MALFORMED 3:62"),
            ("when: manual, gate: {approvers: [ana]}", "NAME_MALFORMED 3:62"),
            ("when: manual, gate: {approvers: ['human:аna']}", "NAME_MALFORMED 3:62"),
            ("when: manual, gate: {approvers: ['human:${{ matrix.x }}']}", "NAME_MALFORMED 3:62"),
            ("when: manual, gate: {not: [requestor]}", "VALUE_UNKNOWN 3:56"),
            ("when: manual, gate: {expires: 999ms}", "VALUE_RANGE 3:59"),
            ("when: manual, gate: {expires: 91d}", "VALUE_RANGE 3:59"),
            ("when: manual, gate: {expires: soon}", "VALUE_RANGE 3:59"),
        ] {
            let text = file(options);
            let problems = parse("t", &text).unwrap_err();
            let found: Vec<String> = problems
                .json(&text)
                .iter()
                .map(|problem| format!("{} {}:{}", problem.code, problem.line, problem.column))
                .collect();
            assert_eq!(found, [expected], "{options}");
        }
        let many: Vec<String> = (0..=APPROVERS_MAX).map(|n| format!("'human:p{n}'")).collect();
        let text = file(&format!("when: manual, gate: {{approvers: [{}]}}", many.join(", ")));
        assert_eq!(parse("t", &text).unwrap_err().list[0].code, "VALUE_RANGE");
    }
}
