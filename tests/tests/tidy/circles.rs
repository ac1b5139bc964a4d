//! Rules about who knows whom: no crate has a circle of imports, handlers know only what they call,
//! and no part of the server knows the whole server.

use std::collections::{BTreeMap, BTreeSet};

use syn::{
    Attribute, Item, ItemMod, UseTree,
    visit::{self, Visit},
};
use towpath_tests::{Source, sources};

use crate::none;

const CRATES: [&str; 8] = [
    "engine/src",
    "pipeline/src",
    "storage/src",
    "proto/src",
    "wire/src",
    "server/src",
    "worker/src",
    "client/src",
];

/// A path of modules and names: `a::b::Name`.
type Path = Vec<String>;

/// What one file says of other modules of its crate.
#[derive(Default)]
struct Imports {
    /// What it imports, by the name that it has here.
    names: BTreeMap<String, Path>,
    /// Every path that it takes.
    taken: Vec<Path>,
}

impl Imports {
    fn of(text: &str) -> Self {
        let mut imports = Self::default();
        imports.visit_file(&syn::parse_file(text).expect("a source file is Rust"));
        imports
    }

    fn tree(&mut self, before: &[String], tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                let below = [before, &[path.ident.to_string()]].concat();
                self.tree(&below, &path.tree);
            }
            UseTree::Name(name) if name.ident == "self" => self.name(before.to_vec(), None),
            UseTree::Name(name) => {
                self.name([before, &[name.ident.to_string()]].concat(), None);
            }
            UseTree::Rename(name) => {
                let path = [before, &[name.ident.to_string()]].concat();
                self.name(path, Some(name.rename.to_string()));
            }
            UseTree::Glob(_) => self.taken.push(before.to_vec()),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.tree(before, tree));
            }
        }
    }

    fn name(&mut self, path: Path, known_as: Option<String>) {
        if let Some(name) = known_as.or_else(|| path.last().cloned()) {
            self.names.insert(name, path.clone());
        }
        self.taken.push(path);
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let words = list.tokens.to_string();
        attribute.path().is_ident("cfg") && words.contains("test") && !words.contains("not")
    })
}

impl<'a> Visit<'a> for Imports {
    fn visit_item(&mut self, item: &'a Item) {
        if let Item::Use(it) = item {
            return self.tree(&[], &it.tree);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, module: &'a ItemMod) {
        // Tests may know everything: nothing depends on them.
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.segments.len() > 1 {
            self.taken.push(path.segments.iter().map(|part| part.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

/// The modules of a crate, by path, with what each says of others.
struct Crate {
    modules: BTreeMap<Path, Imports>,
}

impl Crate {
    fn of(folder: &str, sources: Vec<Source>) -> Self {
        let mut modules = BTreeMap::new();
        for source in sources {
            let path = source.path.trim_start_matches(folder).trim_start_matches('/');
            let parts: Path = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            let is_test = parts.iter().any(|part| part == "tests" || part == "testing");
            let parts = if ["lib", "main"].contains(&path.trim_end_matches(".rs")) {
                Path::new()
            } else {
                parts
            };
            if !is_test {
                modules.insert(parts, Imports::of(&source.text));
            }
        }
        Self { modules }
    }

    /// `path`, as the module `from` writes it, from the root of the crate. `None`: of another crate.
    fn absolute(&self, from: &[String], path: &[String]) -> Option<Path> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([from, rest].concat()),
            "super" => {
                let above = from.split_last().map(|(_, above)| above).unwrap_or_default();
                match rest.first().map(String::as_str) {
                    Some("super") => self.absolute(above, rest),
                    _ => Some([above, rest].concat()),
                }
            }
            name => {
                let child = [from, &[name.to_owned()]].concat();
                if self.modules.contains_key(&child) {
                    return Some([from, path].concat());
                }
                // A name that an import brought here.
                let known = self.modules.get(from)?.names.get(name)?;
                let again = known.first().is_some_and(|first| first == name);
                let known = if again { None } else { self.absolute(from, known) };
                known.map(|known| [&known, rest].concat())
            }
        }
    }

    /// The module that defines what stands at `path`, past re-exports.
    fn definer(&self, path: &[String], steps: usize) -> Option<Path> {
        let length = (0..=path.len()).rev().find(|n| self.modules.contains_key(&path[..*n]))?;
        let (module, rest) = path.split_at(length);
        let again = rest.first().and_then(|name| self.modules.get(module)?.names.get(name));
        match again.filter(|_| steps > 0) {
            Some(known) => {
                let known = self.absolute(module, known)?;
                self.definer(&[&known, &rest[1..]].concat(), steps - 1)
            }
            None => Some(module.to_vec()),
        }
    }

    /// Which module takes something of which. A module knows those that it is part of without an
    /// edge: it was split off from them.
    fn edges(&self) -> BTreeMap<Path, BTreeSet<Path>> {
        let mut edges: BTreeMap<Path, BTreeSet<Path>> = BTreeMap::new();
        for (module, imports) in &self.modules {
            for path in &imports.taken {
                let path = self.absolute(module, path);
                let Some(definer) = path.and_then(|path| self.definer(&path, 5)) else { continue };
                if !module.starts_with(&definer) {
                    edges.entry(module.clone()).or_default().insert(definer);
                }
            }
        }
        edges
    }

    /// The modules that can be reached from themselves.
    fn circles(&self) -> Vec<String> {
        let edges = self.edges();
        let reached = |from: &Path| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
            while let Some(next) = open.pop() {
                for to in edges.get(&next).into_iter().flatten() {
                    if seen.insert(to.clone()) {
                        open.push(to.clone());
                    }
                }
            }
            seen
        };
        let all: BTreeMap<&Path, BTreeSet<Path>> =
            edges.keys().map(|module| (module, reached(module))).collect();
        let mut circles = Vec::new();
        for (from, to) in &edges {
            let back = |to: &&Path| all.get(to).is_some_and(|reached| reached.contains(from));
            for to in to.iter().filter(back) {
                circles.push(format!("{} -> {}", from.join("::"), to.join("::")));
            }
        }
        circles
    }
}

#[test]
fn no_crate_has_a_circle_of_imports() {
    let mut broken = Vec::new();
    for folder in CRATES {
        let circles = Crate::of(folder, sources(folder)).circles();
        broken.extend(circles.into_iter().map(|edge| format!("{folder}: {edge}")));
    }
    none("files do not import one another in a circle", broken);
}

/// What no handler of the server imports: a rule about any of it belongs into a part.
const NOT_IN_HANDLERS: [&str; 14] = [
    "towpath_storage",
    "towpath_pipeline",
    "towpath_engine::aggregate",
    "towpath_engine::job",
    "towpath_engine::plan",
    "towpath_engine::refusal",
    "towpath_engine::run",
    "towpath_engine::scheduler",
    "towpath_engine::views",
    "crate::Server",
    "crate::outputs",
    "crate::scheduler_driver",
    "crate::streams",
    "crate::sync",
];

#[test]
fn handlers_know_only_what_they_call() {
    let mut broken = Vec::new();
    for source in sources("server/src") {
        if !source.path.starts_with("server/src/rpc") {
            continue;
        }
        for path in Imports::of(&source.text).taken {
            let path = path.join("::");
            let is = |ban: &&&str| path == **ban || path.starts_with(&format!("{ban}::"));
            if NOT_IN_HANDLERS.iter().find(is).is_some() {
                broken.push(format!("{}: `{path}`", source.path));
            }
        }
    }
    none("a handler reads a message, calls one part, and answers", broken);
}

#[test]
fn no_part_of_the_server_knows_the_whole() {
    let mut broken = Vec::new();
    for source in sources("server/src") {
        let is_root = ["server/src/server.rs", "server/src/lib.rs"].contains(&&*source.path);
        let taken = Imports::of(&source.text).taken;
        let is_server = |path: &Path| {
            let path = path.join("::");
            path == "crate::Server" || path.starts_with("crate::server::Server")
        };
        if !is_root && taken.iter().any(is_server) {
            broken.push(source.path);
        }
    }
    none("`Server` is named by nothing that it is made of", broken);
}

#[test]
fn a_circle_is_found_through_a_re_export_and_not_between_a_part_and_its_whole() {
    let source =
        |path: &str, text: &str| Source { path: format!("x/src/{path}.rs"), text: text.to_owned() };
    let circles = |files: Vec<Source>| Crate::of("x/src", files).circles();
    let lib = || source("lib", "mod a; mod b; mod c; pub use c::C;");
    let through = circles(vec![
        lib(),
        source("a", "use crate::b::B; pub struct A;"),
        source("b", "pub struct B(crate::C);"),
        source("c", "use super::a; pub struct C(a::A);"),
    ]);
    assert_eq!(through, ["a -> b", "b -> c", "c -> a"]);
    let part = circles(vec![
        lib(),
        source("a", "mod part; pub struct A(part::P);"),
        source("a/part", "use super::A; pub struct P;"),
        source("b", "#[cfg(test)] mod tests { use crate::c::C; }"),
        source("c", "use crate::b::B; pub struct C;"),
    ]);
    assert!(part.is_empty(), "{part:?}");
}
