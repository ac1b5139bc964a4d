//! No crate but the engine knows the kinds of events: what others need of an event is a view
//! (`engine/src/views/`) or a method of the event. So a new kind changes the engine alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use syn::{
    Attribute, ImplItemType, Item, ItemEnum, ItemImpl, ItemType, ItemUse, LitStr, Macro, Path,
    QSelf, Type, UseTree,
    visit::{self, Visit},
};
use towpath_tests::{root, sources};

use crate::none;

/// The enums of events, each with its variants, as the engine's sources have them.
#[derive(Default)]
struct EventEnums {
    enums: BTreeMap<String, BTreeSet<String>>,
    /// What `impl Event for …` names.
    events: BTreeSet<String>,
}

impl EventEnums {
    fn of_the_engine() -> BTreeMap<String, BTreeSet<String>> {
        let mut found = Self::default();
        for source in sources("engine/src").iter().filter(|source| !is_of_tests(&source.path)) {
            found.visit_file(&syn::parse_file(&source.text).expect("a source file is Rust"));
        }
        let Self { mut enums, events } = found;
        enums.retain(|name, _| events.contains(name));
        enums
    }
}

impl<'a> Visit<'a> for EventEnums {
    fn visit_item(&mut self, item: &'a Item) {
        if !is_a_test_module(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_enum(&mut self, item: &'a ItemEnum) {
        let variants = item.variants.iter().map(|variant| variant.ident.to_string());
        self.enums.insert(item.ident.to_string(), variants.collect());
    }

    fn visit_item_impl(&mut self, item: &'a ItemImpl) {
        let of = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        if of.is_some_and(|of| of.ident == "Event") {
            self.events.extend(named(&item.self_ty));
        }
    }
}

/// The last word of the path that `kind` is.
fn named(kind: &Type) -> Option<String> {
    if let Type::Path(path) = kind {
        path.path.segments.last().map(|segment| segment.ident.to_string())
    } else {
        None
    }
}

/// What one file names of the kinds of events.
struct Kinds<'e> {
    enums: &'e BTreeMap<String, BTreeSet<String>>,
    /// The words of the kinds, as records have them.
    words: BTreeSet<String>,
    found: Vec<String>,
}

impl<'e> Kinds<'e> {
    fn of(text: &str, enums: &'e BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
        let words = enums.values().flatten().map(|variant| word(variant)).collect();
        let mut kinds = Self { enums, words, found: Vec::new() };
        kinds.visit_file(&syn::parse_file(text).expect("a source file is Rust"));
        kinds.found
    }

    /// Looks for `Enum::Variant` in the parts of a path.
    fn path(&mut self, parts: &[String]) {
        for pair in parts.windows(2) {
            let variants = self.enums.get(&pair[0]);
            // `*`: everything at once, the variants among it.
            if variants.is_some_and(|known| known.contains(&pair[1]) || pair[1] == "*") {
                self.found.push(pair.join("::"));
            }
        }
    }

    fn import(&mut self, before: &[String], tree: &UseTree) {
        let with = |part: String| [before, &[part]].concat();
        match tree {
            UseTree::Path(path) => self.import(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.path(&with(name.ident.to_string())),
            UseTree::Rename(name) => {
                let parts = with(name.ident.to_string());
                self.path(&parts);
                // Under another name the variants could not be seen.
                self.alias(parts.last());
            }
            UseTree::Glob(_) => self.path(&with("*".to_owned())),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(before, tree));
            }
        }
    }

    fn alias(&mut self, of: Option<&String>) {
        if let Some(name) = of.filter(|name| self.enums.contains_key(*name)) {
            self.found.push(format!("another name for {name}"));
        }
    }
}

impl<'a> Visit<'a> for Kinds<'_> {
    fn visit_item(&mut self, item: &'a Item) {
        if !is_a_test_module(item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.import(&[], &item.tree);
    }

    fn visit_item_type(&mut self, item: &'a ItemType) {
        self.alias(named(&item.ty).as_ref());
    }

    // `type Event = RunEvent;` in an implementation is no way to name a variant.
    fn visit_impl_item_type(&mut self, _item: &'a ImplItemType) {}

    fn visit_path(&mut self, path: &'a Path) {
        let parts: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.path(&parts);
        visit::visit_path(self, path);
    }

    fn visit_qself(&mut self, of: &'a QSelf) {
        // `<RunEvent>::JobLost {}`; with a trait in between it is a method.
        if of.position == 0 {
            self.alias(named(&of.ty).as_ref());
        }
        visit::visit_qself(self, of);
    }

    fn visit_lit_str(&mut self, text: &'a LitStr) {
        if self.words.contains(&text.value()) {
            self.found.push(format!("{:?}", text.value()));
        }
    }

    fn visit_macro(&mut self, call: &'a Macro) {
        // What a macro is given is no syntax tree. As text it is written with blanks between all.
        let text = call.tokens.to_string().replace(' ', "");
        for (name, variants) in self.enums {
            for variant in variants.iter().filter(|it| text.contains(&format!("{name}::{it}"))) {
                self.found.push(format!("{name}::{variant}"));
            }
        }
        let quoted = self.words.iter().filter(|word| text.contains(&format!("\"{word}\"")));
        self.found.extend(quoted.map(|word| format!("{word:?}")));
        visit::visit_macro(self, call);
    }
}

/// `JobLeased` in records: `job_leased`.
fn word(variant: &str) -> String {
    let mut word = String::new();
    for c in variant.chars() {
        if c.is_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.extend(c.to_lowercase());
    }
    word
}

fn is_a_test_module(item: &Item) -> bool {
    if let Item::Mod(module) = item { module.attrs.iter().any(is_for_tests) } else { false }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<Path>().is_ok_and(|cfg| cfg.is_ident("test"))
}

/// Whether a file is declared under `cfg(test)` by the file above it.
fn is_of_tests(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/") || path.ends_with("/testing.rs")
}

/// The source folders of all crates but the engine, whose own the kinds are, and the tests.
fn outside() -> Vec<String> {
    let entries = fs::read_dir(root()).expect("the repository can be listed");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let crates = names.filter(|name| !["engine", "tests"].contains(&name.as_str()));
    let folders = crates.map(|name| format!("{name}/src"));
    folders.filter(|folder| root().join(folder).is_dir()).collect()
}

#[test]
fn a_new_kind_of_event_changes_the_engine_alone() {
    let enums = EventEnums::of_the_engine();
    assert!(enums.contains_key("RunEvent") && enums.contains_key("SettingsEvent"), "{enums:?}");
    let (folders, mut broken) = (outside(), Vec::new());
    assert!(folders.iter().any(|folder| folder == "server/src"), "{folders:?}");
    for source in folders.iter().flat_map(|folder| sources(folder)) {
        if !is_of_tests(&source.path) {
            let found = Kinds::of(&source.text, &enums);
            broken.extend(found.into_iter().map(|found| format!("{}: {found}", source.path)));
        }
    }
    none("no file outside of the engine names a kind of event", broken);
}

#[test]
fn every_way_to_name_a_kind_is_seen() {
    let variants = BTreeSet::from(["JobLost".to_owned(), "RunResumed".to_owned()]);
    let enums = BTreeMap::from([("RunEvent".to_owned(), variants)]);
    for (text, expected) in [
        ("fn f(e: E) { if let RunEvent::JobLost { .. } = e {} }", "RunEvent::JobLost"),
        ("fn f() -> E { event::RunEvent::RunResumed {} }", "RunEvent::RunResumed"),
        ("fn f(e: E) -> bool { matches!(e, RunEvent::JobLost { .. }) }", "RunEvent::JobLost"),
        ("use towpath_engine::event::RunEvent::{JobLost, RunResumed};", "RunEvent::JobLost"),
        ("use towpath_engine::event::{Fact, RunEvent::*};", "RunEvent::*"),
        ("use towpath_engine::event::RunEvent as E;", "another name for RunEvent"),
        ("type E = towpath_engine::event::RunEvent;", "another name for RunEvent"),
        ("fn f(e: E) { if let <RunEvent>::JobLost { .. } = e {} }", "another name for RunEvent"),
        ("const KINDS: [&str; 1] = [\"job_lost\"];", "\"job_lost\""),
        ("fn f(k: &str) { assert_eq!(k, \"run_resumed\"); }", "\"run_resumed\""),
    ] {
        let found = Kinds::of(text, &enums);
        assert!(found.iter().any(|found| found == expected), "{text}: {found:?}");
    }
    for text in [
        "use towpath_engine::event::{Fact, RunEvent};",
        "fn f(bytes: &[u8]) { decode::<RunEvent>(bytes); }",
        "fn f(event: &RunEvent) { event.kind(); RunEvent::kind(event); }",
        "impl Hooks for X { type Event = RunEvent; }",
        "#[cfg(test)]\nmod tests { use super::RunEvent::JobLost; }",
    ] {
        assert_eq!(Kinds::of(text, &enums), [""; 0], "{text}");
    }
}
