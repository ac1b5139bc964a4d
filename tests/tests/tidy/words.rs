//! Words: a crate has one public type of each name, and names and messages use the field's terms.

use std::collections::BTreeMap;

use syn::{
    Attribute, Ident, Item, ItemMod, LitStr, Macro, Visibility,
    visit::{self, Visit},
};
use towpath_tests::{Source, sources};

use crate::none;

/// The sources of each crate. An integration test is a crate of its own, with its folder.
const CRATES: [&str; 8] = [
    "engine/src",
    "pipeline/src",
    "storage/src",
    "proto/src",
    "server/src",
    "worker/src",
    "client/src",
    "tests/src",
];

/// Words that no name and no message has, and the term to use instead.
const BANS: [(&str, &str); 16] = [
    ("house", "server"),
    ("desk", "fixture, app"),
    ("shelf", "key-value backend"),
    ("agenda", "queue"),
    ("specimens", "test events"),
    ("figures", "metrics"),
    ("doomed", "blocked"),
    ("choosy", "has_preferences"),
    ("needers", "dependents"),
    ("workshop", "workspace"),
    ("strays", "orphans"),
    ("whoever", "the client, the caller, the requester"),
    ("somebody", "a client, another process, another person"),
    ("nobody", "no worker, no client, no process"),
    ("everybody", "every client, every person"),
    ("anybody", "any client, any person"),
];

/// Phrases that no message has, and what to write instead.
const PHRASES: [(&str, &str); 5] = [
    ("goes on", "continues"),
    ("counts no more", "is no longer valid"),
    ("taken up", "adopted"),
    ("cannot be meant", "is not valid"),
    ("went away", "was lost, disconnected"),
];

/// The public types that one file declares, by name.
#[derive(Default)]
struct Types {
    found: Vec<String>,
}

impl Types {
    fn of(text: &str) -> Vec<String> {
        let mut types = Self::default();
        types.visit_file(&syn::parse_file(text).expect("a source file is Rust"));
        types.found
    }

    fn note(&mut self, visibility: &Visibility, name: &Ident) {
        if !matches!(visibility, Visibility::Inherited) {
            self.found.push(name.to_string());
        }
    }
}

impl<'a> Visit<'a> for Types {
    fn visit_item(&mut self, item: &'a Item) {
        // A type of a trait belongs to the trait and is no item, so it never comes here.
        #[expect(clippy::wildcard_enum_match_arm, reason = "no other item declares a type")]
        match item {
            Item::Struct(it) => self.note(&it.vis, &it.ident),
            Item::Enum(it) => self.note(&it.vis, &it.ident),
            Item::Trait(it) => self.note(&it.vis, &it.ident),
            Item::Type(it) => self.note(&it.vis, &it.ident),
            Item::Union(it) => self.note(&it.vis, &it.ident),
            _ => {}
        }
        visit::visit_item(self, item);
    }
}

/// The names and messages of one file that have a banned word.
#[derive(Default)]
struct Words {
    found: Vec<String>,
}

impl Words {
    fn of(text: &str) -> Vec<String> {
        let mut words = Self::default();
        words.visit_file(&syn::parse_file(text).expect("a source file is Rust"));
        words.found
    }

    fn note(&mut self, text: &str) {
        let parts = parts(text);
        for (ban, term) in BANS {
            if parts.iter().any(|part| part == ban) {
                self.found.push(format!("`{ban}` in `{}`: {term}", shortened(text)));
            }
        }
    }

    /// Notes phrases too, which only sentences have.
    fn message(&mut self, text: &str) {
        self.note(text);
        let plain = format!(" {} ", parts(text).join(" "));
        for (ban, term) in PHRASES {
            if plain.contains(&format!(" {ban} ")) {
                self.found.push(format!("`{ban}` in `{}`: {term}", shortened(text)));
            }
        }
    }
}

impl<'a> Visit<'a> for Words {
    fn visit_ident(&mut self, name: &'a Ident) {
        self.note(&name.to_string());
    }

    fn visit_lit_str(&mut self, text: &'a LitStr) {
        self.message(&text.value());
    }

    fn visit_macro(&mut self, call: &'a Macro) {
        // The tokens of a macro are no syntax tree; names and messages in them are found as text.
        self.message(&call.tokens.to_string());
    }

    fn visit_attribute(&mut self, attribute: &'a Attribute) {
        // Documentation is for reviewers to judge. Messages of errors are in `#[error("…")]`.
        if attribute.path().is_ident("error")
            && let syn::Meta::List(list) = &attribute.meta
        {
            self.message(&list.tokens.to_string());
        }
    }

    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        // Names of tests are sentences about promises and may say more than a name should.
        if !module.attrs.iter().any(|attribute| attribute.path().is_ident("cfg")) {
            visit::visit_item_mod(self, module);
        }
    }
}

/// The words of a name or a sentence, in lower case: `needs_nobody`, `NeedsNobody` and `needs
/// nobody` have the same ones.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut was_lower = false;
    for c in text.chars() {
        let begins = c.is_uppercase() && was_lower;
        was_lower = c.is_lowercase();
        if begins || !c.is_alphanumeric() {
            parts.push(String::new());
        }
        if let Some(part) = parts.last_mut().filter(|_| c.is_alphanumeric()) {
            part.extend(c.to_lowercase());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Whether `source` holds tests only.
fn is_test(source: &Source) -> bool {
    ["/tests.rs", "/tests/", "/testing.rs", "properties.rs"]
        .iter()
        .any(|part| source.path.contains(part))
}

#[test]
fn no_crate_has_two_public_types_of_one_name() {
    let mut broken = Vec::new();
    for folder in CRATES {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        // `x_absent.rs` takes the place of `x.rs` in a build without the feature.
        let compiled = |source: &Source| !source.path.ends_with("_absent.rs");
        for source in sources(folder).into_iter().filter(compiled) {
            for name in Types::of(&source.text) {
                places.entry(name).or_default().push(source.path.clone());
            }
        }
        let several = places.into_iter().filter(|(_, paths)| paths.len() > 1);
        broken.extend(several.map(|(name, paths)| format!("`{name}`: {}", paths.join(", "))));
    }
    none("a name of a public type means one thing in its crate", broken);
}

#[test]
fn names_and_messages_use_the_terms_of_the_field() {
    let mut broken = Vec::new();
    for folder in CRATES.iter().filter(|folder| **folder != "tests/src") {
        for source in sources(folder).into_iter().filter(|source| !is_test(source)) {
            let found = Words::of(source.without_tests());
            broken.extend(found.into_iter().map(|what| format!("{}: {what}", source.path)));
        }
    }
    none("a name or a message uses the term of the field", broken);
}

#[test]
fn the_rules_about_words_see_what_they_look_for() {
    let text = "pub struct A; mod x { pub(crate) enum A {} struct B; } pub(super) type C = u8;";
    assert_eq!(Types::of(text), ["A", "A", "C"]);

    assert_eq!(parts("FirstDoomed of run_id2"), ["first", "doomed", "of", "run", "id2"]);
    assert_eq!(Words::of("fn first_doomed() {}").len(), 1);
    assert_eq!(Words::of("fn f() { g(\"Nobody works on it.\"); }").len(), 1);
    assert_eq!(Words::of("fn f() { tracing::warn!(%e, \"nobody is let in\"); }").len(), 1);
    assert_eq!(Words::of("#[error(\"the run goes on\")] struct E;").len(), 1);
    assert!(Words::of("/// Nobody reads this.\nfn warehouse() {}").is_empty());
}
