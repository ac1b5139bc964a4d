//! What a worker may say when it opens a session.

use towpath_engine::{ids::invisible_in, refusal::Refusal};
use towpath_proto::v1;

use crate::command_error::CommandError;

/// Longest name of a worker, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Most tags of a worker, and most bytes of each: every lease and report of its session looks at
/// them, and the list of workers repeats them.
const TAGS_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 100;
/// The version of this server.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Refuses workers that this server does not understand, or that have no proper name.
pub(crate) fn check(hello: &v1::Hello) -> Result<(), CommandError> {
    let name = &hello.worker;
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || invisible_in(name).is_some() {
        let bounds = format!("1 to {NAME_BYTES_MAX} bytes without characters that cannot be seen");
        return Err(Refusal::ArgumentOutOfBounds { what: "a worker's name", bounds }.into());
    }
    if hello.tags.len() > TAGS_MAX || hello.tags.iter().any(|tag| tag.len() > TAG_BYTES_MAX) {
        let bounds = format!("at most {TAGS_MAX}, of at most {TAG_BYTES_MAX} bytes each");
        return Err(Refusal::ArgumentOutOfBounds { what: "a worker's tags", bounds }.into());
    }
    if hello.version.is_empty() || compatible(&hello.version) {
        return Ok(());
    }
    Err(CommandError::VersionMismatch { server: VERSION, worker: hello.version.clone() })
}

/// Whether a program of this version is understood: major and minor must be the same.
fn compatible(version: &str) -> bool {
    let series = |version: &str| version.splitn(3, '.').take(2).map(str::to_owned).collect();
    let (ours, theirs): (Vec<String>, Vec<String>) = (series(VERSION), series(version));
    ours == theirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_neither_long_nor_invisible() {
        let named = |name: &str| check(&v1::Hello { worker: name.into(), ..Default::default() });
        for name in ["eu-1", "größe 日本", &"x".repeat(NAME_BYTES_MAX)] {
            named(name).unwrap();
        }
        for name in ["", "a\u{200b}", "a\u{202e}b", "a\nb", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(
                named(name).unwrap_err().code().as_str(),
                "ARGUMENT_OUT_OF_BOUNDS",
                "{name:?}"
            );
        }
    }

    #[test]
    fn tags_are_few_and_short() {
        let tagged = |tags: Vec<String>| {
            check(&v1::Hello { worker: "w".into(), tags, ..Default::default() })
        };
        let tags = |count: usize, bytes: usize| vec!["t".repeat(bytes); count];
        tagged(tags(TAGS_MAX, TAG_BYTES_MAX)).unwrap();
        for tags in [tags(TAGS_MAX + 1, 1), tags(1, TAG_BYTES_MAX + 1)] {
            let error = tagged(tags).unwrap_err();
            assert_eq!(error.code().as_str(), "ARGUMENT_OUT_OF_BOUNDS");
            assert!(error.to_string().contains("a worker's tags"), "{error}");
        }
    }

    #[test]
    fn versions_differ_by_their_first_two_numbers() {
        let series = VERSION.rsplit_once('.').unwrap().0;
        assert!(compatible(&format!("{series}.99")));
        assert!(!compatible(&format!("9{VERSION}")));
        assert!(!compatible("unknown"));
    }
}
