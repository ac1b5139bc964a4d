//! `tow resume`.

use std::path::Path;

use towpath_proto::v1::{self, source::Origin};

use super::{
    App, CommandResult,
    follow::{Follow, work_on},
    pipeline::{self, Pipeline},
};
use crate::{
    args::WhichRun,
    connect::ServerConnection,
    failure::Failure,
    source::{self, SourceKind},
};

/// Continue a run where it stopped
///
/// Jobs that succeeded are not run again; all other jobs are. A pipeline file that was edited
/// meanwhile is refused unless the edit is accepted.
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    run: WhichRun,
    /// Run this stage and everything after it again, although it succeeded
    #[arg(long, value_name = "STAGE")]
    from: Option<String>,
    /// Accept the edits of the pipeline file since the run began
    #[arg(long)]
    accept_changes: bool,
    /// With it, bundle the files as they are, with changes that are not committed
    #[arg(long, requires = "accept_changes")]
    allow_dirty: bool,
    /// Wait at a gate until it is decided elsewhere
    #[arg(long)]
    wait: bool,
    /// What this machine offers to jobs with `tags`
    #[arg(long, value_delimiter = ',', value_name = "TAG")]
    tags: Vec<String>,
}

/// Continues a run and works on it.
pub(crate) async fn resume(app: &App, args: ResumeArgs) -> CommandResult {
    let server = app.server().await?;
    match ask(app, &server, args).await {
        Ok(following) => work_on(app, server, following).await,
        Err(failure) => {
            server.close().await;
            Err(failure)
        }
    }
}

async fn ask(app: &App, server: &ServerConnection, args: ResumeArgs) -> Result<Follow, Failure> {
    let ResumeArgs { run, from, accept_changes, allow_dirty, wait, tags } = args;
    let run = server.run(&run.run).await?;
    let pipeline = pipeline_now(app, &run)?;
    let mut file = pipeline.as_ref().map(Pipeline::message);
    if let (true, Some(pipeline), Some(file)) = (accept_changes, &pipeline, &mut file) {
        let kind = match run.source.as_ref().and_then(|source| source.origin.as_ref()) {
            Some(Origin::Bundle(_)) => SourceKind::Bundle,
            Some(Origin::Remote(_)) => SourceKind::Remote,
            None => SourceKind::Folder,
        };
        if let Some(taken) = source::take(app, kind, allow_dirty, pipeline).await? {
            taken.send(app, server).await?;
            file.source = Some(taken.source);
        }
    }
    let request = v1::ResumeRunRequest {
        run: run.id.clone(),
        from_stage: from.unwrap_or_default(),
        file,
        accept_changes,
        actor: app.actor(),
    };
    let resumed = server.runs().resume_run(request).await?.into_inner().run.unwrap_or_default();
    Ok(Follow {
        run: resumed.id.as_str().into(),
        short_id: resumed.short_id,
        known: resumed.version,
        slots: Some(resumed.parallelism),
        wait,
        tags,
    })
}

/// The pipeline file as it is now, if it is still where it was.
fn pipeline_now(app: &App, run: &v1::Run) -> Result<Option<Pipeline>, Failure> {
    let name = Path::new(&run.file).file_name().unwrap_or_default();
    let path = Path::new(&run.folder).join(name);
    if !path.is_file() {
        let gone = path.display();
        app.say(&format!("`{gone}` was deleted; the plan that the run began with is used."));
        return Ok(None);
    }
    pipeline::read(app, &path).map(Some)
}
