//! Servers by name: the user's own file says where each is and what it is shown. The file itself
//! never holds a token.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;
use toml_edit::{DocumentMut, Item, Table, value};

use crate::{atomic_file::replace_file, failure::Failure};
use towpath_engine::code::ErrorCode;

/// Where the file is, if not at its usual place.
const PLACE: &str = "TOW_CONTEXTS";
/// Longest token that is taken from a file or a command, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What is known of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Where it listens, as HOST:PORT.
    pub(crate) server: String,
    /// The certificate of the authority that the server's was issued by.
    pub(crate) ca: Option<PathBuf>,
    /// The file that holds the token, for its owner alone.
    pub(crate) token_file: Option<PathBuf>,
    /// A command that prints the token.
    pub(crate) token_command: Option<String>,
}

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    /// The one that is used by default.
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// The user's file.
#[derive(Debug)]
pub(crate) struct Contexts {
    path: PathBuf,
    text: String,
    said: Said,
}

impl Contexts {
    /// Reads the file; without one there are no contexts.
    pub(crate) fn read() -> Result<Self, Failure> {
        Self::read_from(place())
    }

    fn read_from(path: PathBuf) -> Result<Self, Failure> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Failure::file(&path, &error)),
        };
        let said = parsed(&path, &text)?;
        Ok(Self { path, text, said })
    }

    /// Every context by name.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Context)> {
        self.said.contexts.iter().map(|(name, context)| (name.as_str(), context))
    }

    /// The name of the one that is used by default.
    pub(crate) fn current(&self) -> Option<&str> {
        self.said.current.as_deref()
    }

    /// The context called `name`, with its paths as they are meant.
    pub(crate) fn get(&self, name: &str) -> Result<Context, Failure> {
        let found = self.said.contexts.get(name).cloned().ok_or_else(|| self.unknown(name))?;
        let at = |path: PathBuf| self.meant(&path);
        Ok(Context { ca: found.ca.map(at), token_file: found.token_file.map(at), ..found })
    }

    /// Makes `name` the one that is used by default; `None`: none is.
    pub(crate) fn use_one(&mut self, name: Option<&str>) -> Result<(), Failure> {
        if let Some(name) = name {
            self.get(name)?;
        }
        self.change(|file| match name {
            Some(name) => {
                // The comment beside the old value belongs to the person who wrote it, and
                // replacing the value would drop it.
                let before = file.get("current").and_then(Item::as_value);
                let beside = before.map(|before| before.decor().clone());
                let mut current = value(name);
                if let (Some(current), Some(beside)) = (current.as_value_mut(), beside) {
                    *current.decor_mut() = beside;
                }
                file["current"] = current;
            }
            None => drop(file.remove("current")),
        })
    }

    /// Adds a context.
    pub(crate) fn add(&mut self, name: &str, context: &Context) -> Result<(), Failure> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
            let message = format!("`{name}` cannot be the name of a context");
            return Err(Failure::new(
                ErrorCode::Usage,
                message,
                "Use 1 to 63 letters, digits and `._-`.",
            ));
        }
        if self.said.contexts.contains_key(name) {
            let message = format!("there is a context named `{name}` already");
            let advice = "Remove it first with `tow context remove`, or choose another name.";
            return Err(Failure::new(ErrorCode::ContextExists, message, advice));
        }
        self.change(|file| {
            let mut table = Table::new();
            table["server"] = value(&context.server);
            let path = |path: &PathBuf| path.display().to_string();
            let rest = [
                ("ca", context.ca.as_ref().map(path)),
                ("token_file", context.token_file.as_ref().map(path)),
                ("token_command", context.token_command.clone()),
            ];
            for (key, said) in rest {
                if let Some(said) = said {
                    table[key] = value(said);
                }
            }
            let mut all = Table::new();
            // Without a line `[contexts]` of its own, as a person would write it.
            all.set_implicit(true);
            let all = file.entry("contexts").or_insert(Item::Table(all));
            all[name] = Item::Table(table);
        })
    }

    /// Forgets a context. Files that it names stay.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), Failure> {
        self.get(name)?;
        let was_current = self.current() == Some(name);
        self.change(|file| {
            if let Some(all) = file.get_mut("contexts").and_then(Item::as_table_like_mut) {
                all.remove(name);
            }
            // A `current` that names nothing makes the whole file invalid.
            if was_current {
                file.remove("current");
            }
        })
    }

    /// Changes the file as a whole, and leaves everything else in it as its owner wrote it.
    fn change(&mut self, change: impl FnOnce(&mut DocumentMut)) -> Result<(), Failure> {
        let mut file: DocumentMut =
            self.text.parse().map_err(|_| invalid(&self.path, "it is not valid TOML"))?;
        change(&mut file);
        let text = file.to_string();
        // What is about to be written is read once more: a change must not leave a file that the
        // next command refuses.
        self.said = parsed(&self.path, &text)?;
        let unusable = |error: std::io::Error| Failure::file(&self.path, &error);
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(unusable)?;
        replace_file(&self.path, text.as_bytes()).map_err(unusable)?;
        self.text = text;
        Ok(())
    }

    /// A path in the file: from the folder of the file, or from home.
    fn meant(&self, path: &Path) -> PathBuf {
        if let (Ok(rest), Some(home)) = (path.strip_prefix("~"), set("HOME")) {
            return home.join(rest);
        }
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn unknown(&self, name: &str) -> Failure {
        let message = format!("there is no context named `{name}` in `{}`", self.path.display());
        Failure::new(ErrorCode::ContextUnknown, message, "See `tow context list`.")
    }
}

impl Context {
    /// The token, fetched from where the file says that it is.
    pub(crate) fn token(&self) -> Result<Option<String>, Failure> {
        let token = match (&self.token_file, &self.token_command) {
            (Some(path), _) => of_file(path)?,
            (None, Some(command)) => of_command(command)?,
            (None, None) => return Ok(None),
        };
        Ok(Some(token.trim().to_owned()))
    }
}

fn of_file(path: &Path) -> Result<String, Failure> {
    let meta = fs::metadata(path).map_err(|error| Failure::file(path, &error))?;
    // As ssh does for keys: a token that others can read is not the person's alone.
    if meta.mode() & 0o077 != 0 {
        let mode = meta.permissions().mode() & 0o777;
        let message = format!("`{}` holds a token and has mode {mode:04o}", path.display());
        let advice = "Make it readable for you alone with `chmod 600`.";
        return Err(Failure::new(ErrorCode::ContextToken, message, advice));
    }
    fs::read_to_string(path).map_err(|error| Failure::file(path, &error))
}

fn of_command(command: &str) -> Result<String, Failure> {
    let advice = "Run the command by hand; it must print the token, and nothing else.";
    let failed = |why: String| {
        let message = format!("the `token_command` of the context gave no token: {why}");
        Failure::new(ErrorCode::ContextToken, message, advice)
    };
    let said = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        // A password manager may have to tell the person something.
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !said.status.success() {
        return Err(failed(said.status.to_string()));
    }
    match String::from_utf8(said.stdout) {
        Ok(text) if text.trim().is_empty() => Err(failed("it printed nothing".to_owned())),
        Ok(text) if text.len() <= TOKEN_BYTES_MAX => Ok(text),
        Ok(_) | Err(_) => Err(failed("its output is not a valid token".to_owned())),
    }
}

/// What `text`, the file at `path`, says.
fn parsed(path: &Path, text: &str) -> Result<Said, Failure> {
    let said: Said = toml::from_str(text).map_err(|error| {
        // The line itself is not shown: it may contain a token.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        invalid(path, &format!("line {line}: {}", error.message()))
    })?;
    for (name, context) in &said.contexts {
        if context.token_file.is_some() && context.token_command.is_some() {
            let why = format!("context `{name}` has both a `token_file` and a `token_command`");
            return Err(invalid(path, &why));
        }
    }
    match &said.current {
        // Refused at once: with a wrong `current`, commands would be sent to the nearest store
        // instead of a server.
        Some(name) if !said.contexts.contains_key(name) => {
            Err(invalid(path, &format!("`current` names the context `{name}`, and there is none")))
        }
        Some(_) | None => Ok(said),
    }
}

fn invalid(path: &Path, why: &str) -> Failure {
    let message = format!("`{}`: {}", path.display(), why.trim_end());
    let advice =
        "A context has `server`, `ca`, and `token_file` or `token_command`, never a token.";
    Failure::new(ErrorCode::ConfigInvalid, message, advice)
}

fn place() -> PathBuf {
    set(PLACE).unwrap_or_else(|| {
        let home = || set("HOME").map(|home| home.join(".config"));
        set("XDG_CONFIG_HOME").or_else(home).unwrap_or_default().join("towpath/config.toml")
    })
}

fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, Result<Contexts, Failure>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/config.toml");
        if !text.is_empty() {
            fs::create_dir(folder.path().join("deep")).unwrap();
            fs::write(&path, text).unwrap();
        }
        (folder, Contexts::read_from(path))
    }

    const TWO: &str = "# mine\ncurrent = \"b\" # the usual\n\n[contexts.a]\nserver = \"a:1\"\nca = \"ca.pem\"\n\n[contexts.b] # second\nserver = \"b:1\"\n";

    #[test]
    fn what_the_owner_wrote_stays_as_it_is_when_something_is_changed() {
        let (folder, contexts) = file(TWO);
        let mut contexts = contexts.unwrap();
        let ca = folder.path().join("deep/ca.pem");
        assert_eq!(contexts.get("a").unwrap().ca, Some(ca), "from the folder of the file");
        let c = Context { server: "c:1".to_owned(), ..Context::default() };

        contexts.add("c", &c).unwrap();
        contexts.use_one(Some("a")).unwrap();
        contexts.remove("b").unwrap();

        let text = fs::read_to_string(&contexts.path).unwrap();
        assert_eq!(
            text,
            "# mine\ncurrent = \"a\" # the usual\n\n[contexts.a]\nserver = \"a:1\"\nca = \"ca.pem\"\n\n[contexts.c]\nserver = \"c:1\"\n"
        );
        assert_eq!(Contexts::read_from(contexts.path.clone()).unwrap().get("c").unwrap(), c);
        contexts.remove("a").unwrap();
        assert_eq!(contexts.current(), None, "nobody uses what is not there");
    }

    #[test]
    fn the_first_context_makes_the_file() {
        let (_folder, contexts) = file("");
        let mut contexts = contexts.unwrap();
        let a = Context { server: "a:1".to_owned(), ..Context::default() };
        contexts.add("a", &a).unwrap();
        assert_eq!(contexts.add("a", &a).unwrap_err().code(), Some(ErrorCode::ContextExists));
        assert_eq!(contexts.add("a b", &a).unwrap_err().code(), Some(ErrorCode::Usage));
        assert_eq!(
            contexts.use_one(Some("b")).unwrap_err().code(),
            Some(ErrorCode::ContextUnknown)
        );
        let again = Contexts::read_from(contexts.path.clone()).unwrap();
        assert_eq!(again.all().collect::<Vec<_>>(), [("a", &a)]);
    }

    #[test]
    fn invalid_values_are_reported_with_their_place() {
        for (text, shown) in [
            ("[contexts.a]\nserver = \"a:1\"\ntoken = \"towpath_1\"\n", "line 3"),
            ("[contexts.a]\n", "server"),
            ("curent = \"a\"\n", "line 1"),
            ("current = \"a\"\n", "there is none"),
            ("[contexts.a]\nserver = \"a\"\ntoken_file = \"x\"\ntoken_command = \"y\"\n", "both"),
        ] {
            let failure = file(text).1.unwrap_err();
            assert_eq!(failure.code(), Some(ErrorCode::ConfigInvalid), "{text}");
            assert!(failure.to_string().contains(shown), "{failure}");
            assert!(!failure.to_string().contains("towpath_1"), "{failure}");
        }
    }

    #[test]
    fn a_token_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "towpath_1\n").unwrap();
        let of = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let token_file = Some(path.clone());
            Context { token_file, ..Context::default() }.token()
        };
        assert_eq!(of(0o600).unwrap().as_deref(), Some("towpath_1"));
        assert_eq!(of(0o640).unwrap_err().code(), Some(ErrorCode::ContextToken));
        let told = |command: &str| {
            let token_command = Some(command.to_owned());
            Context { token_command, ..Context::default() }.token()
        };
        assert_eq!(told("echo towpath_2").unwrap().as_deref(), Some("towpath_2"));
        for wrong in ["exit 3", "true", "printf '\\377'", "yes | head -c 20000"] {
            assert_eq!(told(wrong).unwrap_err().code(), Some(ErrorCode::ContextToken), "{wrong}");
        }
    }
}
