//! The pure crates, and the worker's state machine, read no clock, disk, socket, environment or chance. Their syntax trees are
//! walked, because `use std::{fs, …}` and `std::fs` are one thing in more spellings than a search
//! for text can know.

use syn::{
    Attribute, Expr, ExprMethodCall, Item, ItemUse, Macro, Path, Signature, UseTree,
    visit::{self, Visit},
};
use towpath_tests::sources;

use crate::none;

/// Where the pure crates are, and the crate with a pure module.
const PURE: [&str; 3] = ["engine/src", "pipeline/src", "worker/src"];

/// Of the worker, this module alone is pure.
const PURE_OF_WORKER: &str = "worker/src/protocol";

/// Modules and crates that the pure crates must not name.
const MODULE_BANS: [&str; 12] = [
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "prost",
    "tonic",
];

/// Functions that read a clock or chance, by the last part of their path.
const CALL_BANS: [&str; 5] = ["now", "now_v7", "new_v4", "random", "getrandom"];

/// Macros that write to the process's own streams, or read its surroundings when it is compiled.
const MACRO_BANS: [&str; 8] =
    ["print", "println", "eprint", "eprintln", "dbg", "env", "option_env", "thread_local"];

/// What one file names that it must not.
#[derive(Default)]
struct Bans {
    found: Vec<String>,
}

impl Bans {
    /// What `text`, a source file without its tests, names that it must not.
    fn of(text: &str) -> Vec<String> {
        let file = syn::parse_file(text).expect("a source file is Rust");
        let mut bans = Self::default();
        bans.visit_file(&file);
        bans.found
    }

    fn name(&mut self, path: &str) {
        let ban = MODULE_BANS.iter().find(|ban| {
            path.strip_prefix(**ban).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        });
        // Under another name, or as everything at once, the rest could not be seen any more.
        let hidden = ["std", "std::*", "std::time::*"].contains(&path);
        if ban.is_some() || hidden {
            self.found.push(path.to_owned());
        }
    }

    /// The paths of `tree`, which begins with `before`.
    fn import(&mut self, before: &str, tree: &UseTree) {
        let joined = |part: String| match before {
            "" => part,
            before if part == "self" => before.to_owned(),
            before => format!("{before}::{part}"),
        };
        match tree {
            UseTree::Path(path) => self.import(&joined(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.name(&joined(name.ident.to_string())),
            UseTree::Rename(name) => self.name(&joined(name.ident.to_string())),
            UseTree::Glob(_) => self.name(&joined("*".to_owned())),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(before, tree);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Bans {
    fn visit_item(&mut self, item: &'ast Item) {
        if let Item::Mod(module) = item
            && module.attrs.iter().any(is_for_tests)
        {
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.import("", &item.tree);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let parts: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // A `std` of one part is nobody's; it appears in paths like `std::mem::take` only.
        if parts.len() > 1 {
            self.name(&parts.join("::"));
            if parts.last().is_some_and(|last| CALL_BANS.contains(&last.as_str())) {
                self.found.push(parts.join("::"));
            }
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        if CALL_BANS.contains(&call.method.to_string().as_str()) {
            self.found.push(format!(".{}()", call.method));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr(&mut self, expr: &'ast Expr) {
        if let Expr::Async(_) | Expr::Await(_) = expr {
            self.found.push("async".to_owned());
        }
        visit::visit_expr(self, expr);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        if signature.asyncness.is_some() {
            self.found.push("async".to_owned());
        }
        visit::visit_signature(self, signature);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let name = call.path.segments.last().map(|segment| segment.ident.to_string());
        if name.as_ref().is_some_and(|name| MACRO_BANS.contains(&name.as_str())) {
            self.found.push(format!("{}!", name.unwrap_or_default()));
        }
        // What a macro is given is no syntax tree. As text it is written with blanks between all.
        let text = call.tokens.to_string().replace(' ', "");
        for ban in MODULE_BANS.iter().filter(|ban| ban.contains("::") && text.contains(**ban)) {
            self.found.push((*ban).to_owned());
        }
        visit::visit_macro(self, call);
    }
}

fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<Path>().is_ok_and(|cfg| cfg.is_ident("test"))
}

#[test]
fn the_pure_crates_read_no_clock_disk_socket_environment_or_chance() {
    let mut broken = Vec::new();
    let is_pure = |path: &str| !path.starts_with("worker/") || path.starts_with(PURE_OF_WORKER);
    let pure = PURE.iter().flat_map(|folder| sources(folder));
    let pure: Vec<_> = pure.filter(|source| is_pure(&source.path)).collect();
    assert!(pure.iter().any(|source| source.path.starts_with(PURE_OF_WORKER)));
    for source in pure {
        // A file of tests alone is declared under `cfg(test)` by the file above it.
        if source.path.ends_with("/tests.rs") || source.path.contains("/tests/") {
            continue;
        }
        broken.extend(Bans::of(&source.text).iter().map(|ban| format!("{}: {ban}", source.path)));
    }
    none("the pure crates read no clock, disk, socket, environment or chance", broken);
}

#[test]
fn every_spelling_is_seen() {
    for (text, ban) in [
        ("use std::{collections::BTreeMap, fs};", "std::fs"),
        ("use std::{fs::{self, File}};", "std::fs"),
        ("use std::fs as disk;", "std::fs"),
        ("use std::io::Read as _;", "std::io::Read"),
        ("use std::*;", "std::*"),
        ("use std as s;", "std"),
        ("fn f() { std::fs::read(\"x\"); }", "std::fs::read"),
        ("fn f() -> std::time::Instant { todo() }", "std::time::Instant"),
        ("fn f() { let at = jiff::Timestamp::now(); }", "jiff::Timestamp::now"),
        ("async fn f() {}", "async"),
        ("fn f() { println!(\"x\"); }", "println!"),
        ("fn f() { assert!(std::env::var(\"X\").is_ok()); }", "std::env"),
    ] {
        assert!(Bans::of(text).iter().any(|found| found == ban), "{text}: {:?}", Bans::of(text));
    }
    for text in [
        "use std::{fmt, time::Duration};",
        "fn f(now: u64) -> u64 { now }",
        "#[cfg(test)]\nmod tests { use std::fs; }",
        "fn f() { std::mem::take(&mut 1); }",
    ] {
        assert_eq!(Bans::of(text), [""; 0], "{text}");
    }
}
