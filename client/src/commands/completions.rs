//! `tow completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{App, CommandResult};
use crate::{cli::Cli, exit};

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

/// Prints what the shell reads.
pub(crate) fn completions(app: &App, args: &CompletionsArgs) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tow", &mut script);
    app.print(&String::from_utf8_lossy(&script))?;
    Ok(exit::DONE)
}
