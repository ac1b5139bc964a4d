//! `tow version`.

use serde::Serialize;
use towpath_proto::v1;

use super::{App, CommandResult};
use crate::{
    args::Output,
    connect::{ServerConnection, store_folder},
    embedded::FEATURES,
    exit,
    failure::Failure,
    render::safe,
};

/// Show the version of this program and of the server
///
/// Without a store or a server only the version of this program is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {}

#[derive(Serialize)]
struct VersionJson {
    version: &'static str,
    /// What it is built from; absent in builds for development.
    commit: Option<&'static str>,
    /// The optional parts that it has.
    features: &'static [&'static str],
    server: Option<ServerJson>,
}

#[derive(Serialize)]
struct ServerJson {
    version: String,
    pid: u32,
    store: String,
    position: u64,
    /// Whether it ends with this command.
    own: bool,
}

/// Shows the versions. A server that cannot be reached takes nothing away from the first line.
pub(crate) async fn version(app: &App, _: VersionArgs) -> CommandResult {
    let version = env!("CARGO_PKG_VERSION");
    let commit = Some(env!("TOW_BUILT_FROM")).filter(|commit| !commit.is_empty());
    if app.output() == Output::Text {
        app.print(&program_line(version, commit, FEATURES))?;
    }
    let has_store = store_folder(&app.url()).is_none_or(|folder| folder.exists());
    let server = match has_store {
        true => described(app).await.map(Some),
        false => Ok(None),
    };
    if app.output() != Output::Text {
        let server = server.as_ref().ok().and_then(Option::as_ref);
        let server = server.map(|(description, own)| ServerJson {
            version: description.version.clone(),
            pid: description.pid,
            store: description.store.clone(),
            position: description.position,
            own: *own,
        });
        app.json(&VersionJson { version, commit, features: FEATURES, server })?;
    }
    match server {
        Ok(Some((server, own))) if app.output() == Output::Text => {
            let whose = if own { "this process" } else { "another process" };
            app.print(&format!(
                "server {} ({whose}, pid {})\nstore {} at position {}\n",
                safe(&server.version),
                server.pid,
                safe(&server.store),
                server.position,
            ))?;
        }
        Ok(_) => {}
        Err(failure) => app.say(&failure.to_string()),
    }
    Ok(exit::DONE)
}

/// What the server says of itself, and whether it lives in this process.
async fn described(app: &App) -> Result<(v1::DescribeResponse, bool), Failure> {
    let server = ServerConnection::connect_existing(&app.url()).await?;
    let description = server.log().describe(v1::DescribeRequest {}).await;
    let own = server.is_ours();
    server.close().await;
    Ok((description?.into_inner(), own))
}

fn program_line(version: &str, commit: Option<&str>, features: &[&str]) -> String {
    let commit = commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    format!("tow {version}{commit}\nfeatures {features}\n")
}

#[cfg(test)]
mod tests {
    use super::program_line;

    #[test]
    fn a_release_names_its_commit_and_its_features() {
        let line = program_line("0.2.0", Some("9157158c0ffe"), &["server", "fjall"]);
        assert_eq!(line, "tow 0.2.0 (9157158c0ffe)\nfeatures server, fjall\n");
        assert_eq!(program_line("0.2.0", None, &[]), "tow 0.2.0\nfeatures none\n");
    }
}
