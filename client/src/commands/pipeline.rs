//! Reading the pipeline file, for every command that takes one.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use towpath_engine::code::ErrorCode;
use towpath_engine::{gate::Excluded, plan::Plan};
use towpath_pipeline::file::{self, Parsed};
use towpath_proto::v1;

use crate::{authors, commands::App, failure::Failure, render::safe};

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
    /// Who wrote it, if a gate wants to know and it can be known.
    authors: Option<v1::Authors>,
}

impl Pipeline {
    /// The e-mail addresses of the requester, if a gate of the file depends on them.
    pub(crate) fn emails(&self) -> Vec<String> {
        let asked = self.plan.jobs.iter().any(|job| job.gate.is_some());
        if asked { authors::own_emails() } else { Vec::new() }
    }

    /// As a request carries it.
    pub(crate) fn message(&self) -> v1::PipelineFile {
        v1::PipelineFile {
            name: self.name.clone(),
            folder: self.folder.to_string_lossy().into_owned(),
            content: self.bytes.clone().into(),
            source: None,
            authors: self.authors.clone(),
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
            ErrorCode::FileUnreadable,
            format!("no {} was found here", DEFAULT_NAMES[0]),
            "Name a pipeline file, or write a first one with `tow init`.",
        )
    })
}

/// Reads the file at `path`. Warnings go to standard error; errors are the failure.
pub(crate) fn read(app: &App, path: &Path) -> Result<Pipeline, Failure> {
    let bytes = bytes_of(path)?;
    let name = path.to_string_lossy().into_owned();
    let text = String::from_utf8_lossy(&bytes);
    let colour = app.style.stderr_colour;
    let width = app.style.width;
    match file::parse_bytes(&name, &bytes) {
        Ok(Parsed { plan, warnings }) => {
            for warning in &warnings {
                let shown = warning.render(&name, &text, colour, Some(width));
                // A closed standard error must not prevent the run.
                drop(writeln!(io::stderr().lock(), "{}\n", shown.trim_end()));
            }
            let folder = folder_of(path)?;
            // With the bytes that were parsed: the file may change while git is read.
            let authors = authors_of(app, path, &bytes, &plan);
            Ok(Pipeline { name, folder, bytes, plan, authors })
        }
        Err(problems) => {
            let shown = problems.render(&name, &text, colour, Some(width));
            let summary = format!("`{name}` has {}", problems.summary());
            Err(Failure::file_invalid(summary, shown))
        }
    }
}

/// Who wrote the file, if a gate of `plan` wants to know. If that cannot be known, says why.
fn authors_of(app: &App, path: &Path, bytes: &[u8], plan: &Plan) -> Option<v1::Authors> {
    let mut policies = plan.jobs.iter().filter_map(|job| job.gate.as_ref());
    // Reading the history takes seconds in a large repository, and addresses of people are not sent
    // for nothing.
    if !policies.any(|policy| policy.excludes(Excluded::Author)) {
        return None;
    }
    let found = authors::of(path, bytes);
    if let Err(why) = &found {
        let name = safe(&path.to_string_lossy());
        app.say(&format!("The authors of `{name}` are unknown: {}.", safe(&why.to_string())));
    }
    found.ok()
}

/// The bytes of the file at `path`, if they can be a pipeline file at all.
pub(crate) fn bytes_of(path: &Path) -> Result<Vec<u8>, Failure> {
    let found = fs::metadata(path).map_err(|error| Failure::file(path, &error))?;
    // Reading a pipe or a device would block, or never end.
    if !found.is_file() {
        let error = io::Error::other("this is not a file");
        return Err(Failure::file(path, &error));
    }
    // One byte more than may be: the parser then says what is wrong, and where.
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| Failure::file(path, &error))?;
    io::Read::read_to_end(&mut io::Read::take(file, file::FILE_BYTES_MAX as u64 + 1), &mut bytes)
        .map_err(|error| Failure::file(path, &error))?;
    Ok(bytes)
}

fn folder_of(path: &Path) -> Result<PathBuf, Failure> {
    // Absolute, because workers and later commands run in other folders.
    let whole = fs::canonicalize(path).map_err(|error| Failure::file(path, &error))?;
    Ok(whole.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned))
}
