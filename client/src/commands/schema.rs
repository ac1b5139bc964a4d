//! `tow schema`.

use towpath_pipeline::schema::json_schema_text;

use super::{App, CommandResult};
use crate::exit;

/// Print the JSON Schema of the pipeline file
///
/// Editors complete and check the file with it. Write it beside the file and name it in the file's
/// first line: `# yaml-language-server: $schema=towpath.schema.json`.
#[derive(Debug, clap::Args)]
pub(crate) struct SchemaArgs {}

/// Prints the schema.
pub(crate) fn schema(app: &App, _: &SchemaArgs) -> CommandResult {
    let mut text = json_schema_text();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    app.print(&text)?;
    Ok(exit::DONE)
}
