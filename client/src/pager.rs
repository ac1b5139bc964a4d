//! Shows a text that is longer than the screen through the pager of the person who reads it.

use std::process::Stdio;

use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::signals::Signals;

/// The pager where `PAGER` names none.
const PAGER_DEFAULT: &str = "less";
/// Options for `less` if `LESS` is not set: keep colours, leave the text on the screen.
/// Source: what git does.
const LESS_DEFAULT: &str = "FRX";

/// What became of a text that was to be paged.
pub(crate) enum Paged {
    Shown,
    /// There is no pager, or it failed: the text is to be printed instead.
    NotShown,
    /// A signal ended this process while it was shown.
    Terminated,
}

/// Shows `text` in the pager and waits until the person leaves it.
pub(crate) async fn page(text: &str, signals: &mut Signals) -> Paged {
    let chosen = std::env::var("PAGER").ok().filter(|pager| !pager.trim().is_empty());
    let mut command = Command::new("sh");
    command.arg("-c").arg(chosen.as_deref().unwrap_or(PAGER_DEFAULT));
    if std::env::var_os("LESS").is_none() {
        command.env("LESS", LESS_DEFAULT);
    }
    let Ok(mut pager) = command.stdin(Stdio::piped()).kill_on_drop(true).spawn() else {
        return Paged::NotShown;
    };
    let stdin = pager.stdin.take();
    let shown = async {
        if let Some(mut stdin) = stdin {
            // A pager that is left before the end takes no more, which is no fault.
            drop(stdin.write_all(text.as_bytes()).await);
        }
        pager.wait().await
    };
    let paged = tokio::select! {
        ended = shown => match ended {
            Ok(status) if status.success() => Paged::Shown,
            // 127 is a shell that finds no such program. A pager that broke showed who knows what.
            Ok(_) | Err(_) => Paged::NotShown,
        },
        () = signals.terminated() => Paged::Terminated,
    };
    // The keyboard belonged to the pager, and Ctrl-C in it stops a search and not a run.
    signals.forget_interrupts();
    paged
}
