//! Panics of a database underneath, turned into values.
//!
//! sled panics on some damaged files. The panic is caught, and its message is kept off the terminal
//! of the thread that asked for it; every other panic of the process is reported as before.

use std::{
    cell::Cell,
    io,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

use super::KvError;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// How an error of the system looks in the words of a panic about it.
const OS_ERROR: &str = "Os { code: ";

/// Runs `work` and turns a panic in it into an error with the panic's words.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> Result<T, KvError>) -> Result<T, KvError> {
    static HOOK: Once = Once::new();
    // Set once per process and asking a flag of the own thread: no race between two callers.
    HOOK.call_once(|| {
        let outer = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                outer(panic);
            }
        }));
    });
    // Put back and not cleared: calls nest when a destructor runs within one.
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.unwrap_or_else(|panic| {
        let says = panic.downcast_ref::<String>().map(String::as_str);
        let says = says.or_else(|| panic.downcast_ref::<&str>().copied());
        let says = says.unwrap_or("a panic without words");
        // One line: the rest of a panic is for a debugger.
        let says = says.lines().next().unwrap_or_default();
        if says.contains(OS_ERROR) {
            // The system refused, and sled unwrapped that: nothing is wrong with its files.
            return Err(KvError::unavailable(io::Error::other(says.to_owned())));
        }
        Err(KvError::Damaged(says.to_owned()))
    })
}

/// Drops `value` and turns a panic of its destructor into an error.
pub(crate) fn drop_catching_panic<T>(value: T) -> Result<(), KvError> {
    catch_panic(|| {
        drop(value);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_about_an_error_of_the_system_is_no_damage() {
        let unwraps = || -> Result<(), KvError> {
            let refused = io::Error::from_raw_os_error(5);
            panic!("called `Result::unwrap()` on an `Err` value: {refused:?}");
        };

        assert!(matches!(catch_panic(unwraps), Err(KvError::Unavailable(_))));
    }

    /// Panics when it is dropped, as sled does when its last sync fails.
    struct PanicsLast;

    impl Drop for PanicsLast {
        fn drop(&mut self) {
            panic!("the last sync failed");
        }
    }

    #[test]
    fn a_panic_of_a_destructor_is_kept_off_the_terminal() {
        let error = drop_catching_panic(PanicsLast).unwrap_err();

        assert!(matches!(error, KvError::Damaged(says) if says == "the last sync failed"));
    }

    #[test]
    fn a_panic_becomes_damage_in_its_own_words() {
        let n = 3;

        let error = catch_panic::<()>(|| panic!("page {n} is torn")).unwrap_err();

        assert!(matches!(error, KvError::Damaged(says) if says == "page 3 is torn"));
    }
}
