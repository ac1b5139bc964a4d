//! Where the files of a run come from, when they are not in a folder that its workers share: one
//! commit, in a bundle or at a remote. And what may be written below a working folder at all; both
//! ends ask here, because neither believes the other.

use serde::{Deserialize, Serialize};

use crate::ids::Blob;

/// Largest bundle, in bytes.
pub const BUNDLE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most files of a source.
pub const SOURCE_FILES_MAX: usize = 100_000;
/// Largest file of a source, in bytes.
pub const SOURCE_FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most bytes of all files of a source together, unpacked.
pub const SOURCE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Longest path below a working folder, in bytes.
pub const PATH_BYTES_MAX: usize = 1_024;
/// Longest name of a file, in bytes. Source: what Linux file systems take.
const NAME_BYTES_MAX: usize = 255;
/// Longest address of a remote, in bytes.
const REMOTE_BYTES_MAX: usize = 1_024;

/// The files of a run: one commit, frozen like the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The id of the commit, in hexadecimal.
    pub commit: String,
    /// Where it is found.
    pub origin: Origin,
    /// The folder below the root of its tree that scripts run in, with `/`. Empty: the root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub folder: String,
    /// The commit that was checked out when the client made this one up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// It has uncommitted changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
}

/// Where a commit is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// In a pack that the client sent: the commit, its trees and its files, and no history.
    Bundle(Blob),
    /// In a repository that the workers reach, at this address.
    Remote(String),
}

impl Source {
    /// Why this cannot be a source, in words. `None`: it can.
    pub fn problem(&self) -> Option<String> {
        let ids = std::iter::once(&self.commit).chain(&self.parent);
        let is_id = |id: &String| {
            // SHA-1 and SHA-256 repositories. A name of a branch would not be frozen.
            matches!(id.len(), 40 | 64)
                && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !ids.clone().all(is_id) {
            return Some("a commit is named by 40 or 64 hexadecimal digits".to_owned());
        }
        if !self.folder.is_empty()
            && let Some(why) = path_problem(&self.folder)
        {
            return Some(format!("the folder of the source {why}"));
        }
        match &self.origin {
            Origin::Bundle(blob) if blob.size > BUNDLE_BYTES_MAX => {
                Some(format!("a bundle has at most {BUNDLE_BYTES_MAX} bytes"))
            }
            Origin::Bundle(_) => None,
            Origin::Remote(address) => {
                remote_problem(address).map(|why| format!("the address of the remote {why}"))
            }
        }
    }
}

/// Why files cannot be taken from the remote at `address`. `None`: they can.
pub fn remote_problem(address: &str) -> Option<&'static str> {
    let odd = |c: char| c.is_control() || c.is_whitespace();
    // The address becomes an argument of `git` on every worker and a line of the log.
    if address.is_empty() || address.len() > REMOTE_BYTES_MAX || address.contains(odd) {
        return Some("is empty, too long, or has white space in it");
    }
    let Some((scheme, rest)) = address.split_once("://") else {
        // `user@host:path`, as ssh is often written; `ext::…` and options are not.
        let plain = |text: &str| {
            let mut parts = text.chars();
            parts.next().is_some_and(char::is_alphanumeric)
                && parts.all(|c| c.is_alphanumeric() || "._-".contains(c))
        };
        let named = address.split_once('@').and_then(|(user, rest)| {
            let (host, path) = rest.split_once(':')?;
            (plain(user) && plain(host) && !path.is_empty() && !path.starts_with([':', '-']))
                .then_some(())
        });
        return named.is_none().then_some("is neither https, ssh, file nor user@host:path");
    };
    // Only this part has a user: an `@` in the path is a character of the path.
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    // `ssh` would read such a host or user as an option, and some of its options run programs.
    if rest.starts_with('-') || user.is_some_and(|user| user.starts_with('-')) {
        return Some("begins like an option");
    }
    match (scheme, user) {
        // The log is for ever and its readers are many: credentials belong to the worker's git.
        ("https", Some(_)) => Some("carries a user or a password"),
        ("ssh", Some(user)) if user.contains(':') => Some("carries a password"),
        ("https" | "ssh" | "file", _) => None,
        _ => Some("is neither https, ssh, file nor user@host:path"),
    }
}

/// Why `path` cannot be written below a working folder. `None`: it can.
pub fn path_problem(path: &str) -> Option<&'static str> {
    if path.len() > PATH_BYTES_MAX {
        return Some("is too long");
    }
    path.split('/').find_map(name_problem)
}

/// Why nothing below a working folder can be called `name`. `None`: it can.
pub fn name_problem(name: &str) -> Option<&'static str> {
    match name {
        "" | "." | ".." => return Some("leads out of the folder or names nothing"),
        _ if name.len() > NAME_BYTES_MAX => return Some("is too long"),
        _ if name.contains('/') => return Some("has a slash in a name"),
        _ if name.chars().any(char::is_control) => return Some("holds control characters"),
        _ => {}
    }
    // What some file systems would take for `.git` is as good as that.
    let seen: String = name.chars().filter(|c| !is_ignored(*c)).collect();
    let seen = seen.trim_end_matches(['.', ' ']).to_ascii_lowercase();
    // NTFS reads `.git:x` and `.git::$INDEX_ALLOCATION` as `.git`.
    let seen = seen.split(':').next().unwrap_or_default();
    match seen {
        // The second is the short name that Windows gives to the first. Files in it, such as hooks,
        // are run by git.
        ".git" | "git~1" => Some("is the name of a repository's own folder"),
        ".towpath" => Some("is the name of a store"),
        "" => Some("leads out of the folder or names nothing"),
        _ => None,
    }
}

/// Characters that some file systems ignore in names.
fn is_ignored(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

/// Whether a link at `path` that says `target` stays inside, whatever other such links there are.
///
/// Only leading `..` are taken: after a name, which may be a link itself, it is unknown where
/// `..` leads.
pub fn link_stays(path: &str, target: &str) -> bool {
    // The folder of the link, not the link: a relative target begins there.
    let mut depth = path.split('/').count() - 1;
    let mut is_below = false;
    if target.is_empty() || target.starts_with('/') || target.len() > PATH_BYTES_MAX {
        return false;
    }
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part != ".." {
            if name_problem(part).is_some() {
                return false;
            }
            is_below = true;
        // `..` after a name could leave through that name if it is a link itself; at depth 0 it
        // leaves the tree at once.
        } else if is_below || depth == 0 {
            return false;
        } else {
            depth -= 1;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundled() -> Source {
        Source {
            commit: "a".repeat(40),
            origin: Origin::Bundle(Blob::of(b"pack")),
            folder: String::new(),
            parent: None,
            dirty: false,
        }
    }

    #[test]
    fn a_source_names_a_commit_a_folder_below_and_where_it_is() {
        assert_eq!(bundled().problem(), None);
        assert_eq!(Source { folder: "db/shop".into(), ..bundled() }.problem(), None);
        for commit in ["", "HEAD", "--upload-pack=x", &"A".repeat(40), &"a".repeat(41)] {
            assert!(Source { commit: commit.into(), ..bundled() }.problem().is_some(), "{commit}");
            let parent = Some(commit.into());
            assert!(Source { parent, ..bundled() }.problem().is_some(), "{commit}");
        }
        for folder in ["/etc", "..", "a/../b", "a//b", "a/", ".git", "a\nb"] {
            assert!(Source { folder: folder.into(), ..bundled() }.problem().is_some(), "{folder}");
        }
        let large = Blob { size: BUNDLE_BYTES_MAX + 1, ..Blob::of(b"") };
        assert!(Source { origin: Origin::Bundle(large), ..bundled() }.problem().is_some());
    }

    #[test]
    fn a_remote_is_of_a_known_kind_and_carries_no_password() {
        for address in [
            "https://example.org/a/b.git",
            "ssh://git@example.org:22/a.git",
            "git@example.org:a/b.git",
            "file:///srv/git/a.git",
            "https://example.org:8443/a@b",
        ] {
            assert_eq!(remote_problem(address), None, "{address}");
        }
        for address in [
            "",
            "https://user:secret@example.org/a.git",
            "https://token@example.org/a.git",
            "ssh://git:secret@example.org/a.git",
            "ssh://-oProxyCommand=x/a",
            "ssh://-x@host/a",
            "http://example.org/a.git",
            "git://example.org/a.git",
            "ext::sh -c id",
            "ext::id",
            "--upload-pack=id",
            "-u@host:path",
            "a@-oProxyCommand=x:y",
            "/srv/git/a.git",
            "../a",
            "host:path",
            "a@b::c",
            "https://a\nb",
        ] {
            assert!(remote_problem(address).is_some(), "{address}");
        }
    }

    #[test]
    fn paths_that_lead_out_or_mean_something_to_git_are_refused() {
        for path in
            ["a", "a/b.sql", ".gitignore", ".github/x", "ü/ö", "git", "a.git", "..a", "a..", "a b"]
        {
            assert_eq!(path_problem(path), None, "{path}");
        }
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            ".",
            "a/./b",
            "a//b",
            "a/",
            "a\0b",
            "a\nb",
            "\u{7f}",
            "\u{85}",
            ".git",
            ".git/config",
            "a/.GIT/hooks",
            ".g\u{200c}it",
            "\u{feff}.git",
            ".git.",
            ".git ",
            ".git . .",
            "GIT~1",
            ".git::$INDEX_ALLOCATION",
            ".towpath/x",
            "...",
        ] {
            assert!(path_problem(path).is_some(), "{path:?}");
        }
        assert!(path_problem(&"a/".repeat(PATH_BYTES_MAX)).is_some());
        assert!(path_problem(&"a".repeat(NAME_BYTES_MAX + 1)).is_some());
    }

    #[test]
    fn a_link_stays_inside_or_is_refused() {
        for (path, target) in
            [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b"), ("a/b", "..")]
        {
            assert!(link_stays(path, target), "{path} -> {target}");
        }
        for (path, target) in [
            ("a", "/etc"),
            ("a", ".."),
            ("a", "../x"),
            ("a/b", "../../x"),
            ("a", ""),
            ("a", ".git/config"),
            // `a/b/d` may be a link to the root, and `..` of that is outside.
            ("e", "a/b/d/.."),
            ("a/e", "x/../../.."),
            ("a/e", "d/.."),
            ("a/b/e", "../d/../x"),
        ] {
            assert!(!link_stays(path, target), "{path} -> {target}");
        }
    }
}
