//! What a worker may say when it opens a session.

use towpath_engine::{ids::invisible_in, refusal::Refusal};
use towpath_proto::v1;

use crate::command_error::CommandError;

/// Longest name of a worker, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// The version of this server.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Refuses workers that this server does not understand, or that have no proper name.
pub(crate) fn check(hello: &v1::Hello) -> Result<(), CommandError> {
    let name = &hello.worker;
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || invisible_in(name).is_some() {
        let bounds = format!("1 to {NAME_BYTES_MAX} bytes without characters that cannot be seen");
        return Err(Refusal::ArgumentOutOfBounds { what: "a worker's name", bounds }.into());
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
    fn versions_differ_by_their_first_two_numbers() {
        let series = VERSION.rsplit_once('.').unwrap().0;
        assert!(compatible(&format!("{series}.99")));
        assert!(!compatible(&format!("9{VERSION}")));
        assert!(!compatible("unknown"));
    }
}
