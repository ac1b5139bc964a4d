//! `tow completions`.

use clap_complete::Shell;

use super::{App, CommandResult};
use crate::exit;

/// Print shell completions
///
/// bash: `source <(tow completions bash)`. zsh: `tow completions zsh > "${fpath[1]}/_tow"`.
/// fish: `tow completions fish > ~/.config/fish/completions/tow.fish`.
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints what the shell reads to complete the command lines of `grammar`.
pub(crate) fn completions(
    app: &App,
    args: &CompletionsArgs,
    mut grammar: clap::Command,
) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut grammar, "tow", &mut script);
    app.print(&String::from_utf8_lossy(&script))?;
    Ok(exit::DONE)
}
