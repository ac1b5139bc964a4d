//! `tow completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Desk, Finished};
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
pub(crate) fn completions(desk: &Desk, args: &CompletionsArgs) -> Finished {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tow", &mut script);
    desk.print(&String::from_utf8_lossy(&script))?;
    Ok(exit::DONE)
}
