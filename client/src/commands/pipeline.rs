//! Reading the pipeline file, for every command that takes one.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use towpath_engine::{
    pipeline_file::{self, Parsed},
    plan::Plan,
};
use towpath_proto::v1;

use crate::{commands::Desk, failure::Failure};

/// The names that are looked for, in this order.
const DEFAULT_NAMES: [&str; 3] = ["towpath.yml", "towpath.yaml", "pulsaride-pipeline.yml"];

/// A pipeline file that has no errors.
pub(crate) struct Pipeline {
    /// As the caller named it.
    pub(crate) name: String,
    /// The folder it is in, absolute.
    pub(crate) folder: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) plan: Plan,
}

impl Pipeline {
    /// As a request carries it.
    pub(crate) fn message(&self) -> v1::PipelineFile {
        v1::PipelineFile {
            name: self.name.clone(),
            folder: self.folder.to_string_lossy().into_owned(),
            content: self.bytes.clone().into(),
            source: None,
        }
    }
}

/// The pipeline file that the command line means.
pub(crate) fn locate(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(asked) = asked {
        return Ok(asked.to_owned());
    }
    let found = DEFAULT_NAMES.iter().map(PathBuf::from).find(|name| name.is_file());
    found.ok_or_else(|| {
        Failure::new(
            "FILE_UNREADABLE",
            format!("there is no {} here", DEFAULT_NAMES[0]),
            "Name a pipeline file, or write a first one with `tow init`.",
        )
    })
}

/// Reads the file at `path`. Warnings go to standard error; errors are the failure.
pub(crate) fn read(desk: &Desk, path: &Path) -> Result<Pipeline, Failure> {
    let bytes = bytes_of(path)?;
    let name = path.to_string_lossy().into_owned();
    let text = String::from_utf8_lossy(&bytes);
    let colour = desk.style.stderr_colour;
    let width = desk.style.width;
    match pipeline_file::parse_bytes(&name, &bytes) {
        Ok(Parsed { plan, warnings }) => {
            for warning in &warnings {
                let shown = warning.render(&name, &text, colour, Some(width));
                drop(writeln!(io::stderr().lock(), "{}\n", shown.trim_end()));
            }
            let folder = folder_of(path)?;
            Ok(Pipeline { name, folder, bytes, plan })
        }
        Err(problems) => {
            let shown = problems.render(&name, &text, colour, Some(width));
            let summary = format!("`{name}` has {}", problems.summary());
            Err(Failure::file_invalid(summary, shown))
        }
    }
}

/// The bytes of the file at `path`, if they can be a pipeline file at all.
pub(crate) fn bytes_of(path: &Path) -> Result<Vec<u8>, Failure> {
    let found = fs::metadata(path).map_err(|error| Failure::file(path, &error))?;
    if !found.is_file() {
        let error = io::Error::other("this is no file");
        return Err(Failure::file(path, &error));
    }
    // One byte more than may be: the parser then says what is wrong, and where.
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| Failure::file(path, &error))?;
    io::Read::read_to_end(
        &mut io::Read::take(file, pipeline_file::FILE_BYTES_MAX as u64 + 1),
        &mut bytes,
    )
    .map_err(|error| Failure::file(path, &error))?;
    Ok(bytes)
}

fn folder_of(path: &Path) -> Result<PathBuf, Failure> {
    let whole = fs::canonicalize(path).map_err(|error| Failure::file(path, &error))?;
    Ok(whole.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned))
}
