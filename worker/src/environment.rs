//! What a script sees of the worker's environment: a short list of harmless names, and what its
//! job asks for.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use crate::{
    attempt::Script,
    mask::{Mask, SecretUnusable},
    telemetry::of_script,
};

/// What passes from the worker to every script, besides `LC_*`. Where programs and files are, who
/// runs them and how text is written; nothing that changes what a program loads or trusts.
pub const PASSED_ON: [&str; 9] =
    ["HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"];
/// Names that begin so belong to Towpath; a job cannot set them.
pub const RESERVED_PREFIX: &str = "TOW_";

/// The worker's own token. It gives access to the server, so no job ever gets it, not even
/// one that names it as a secret.
const TOKEN_VARIABLE: &str = "TOW_TOKEN";

/// Keeps other processes of the same user out of this one's memory and environment.
///
/// A job runs as the user of its worker. Without this it reads the worker's token and the secrets
/// of all other jobs in `/proc/PID/environ`. Processes of root still can, and a job can still read
/// the environment of another job's processes.
pub fn shut_out_jobs() -> std::io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// The environment of the worker, read once, without the worker's own token.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// The values of these secrets, made into a mask.
    pub(crate) fn mask(&self, secrets: &[String]) -> Result<Mask, SecretUnusable> {
        // A missing secret fails the job here: a script that runs without it could do half of its
        // work.
        let values = secrets.iter().map(|name| match self.0.get(OsStr::new(name)) {
            Some(value) => Ok((name.as_str(), value.as_bytes())),
            None => Err(SecretUnusable::Absent { name: name.clone() }),
        });
        Mask::of(values.collect::<Result<Vec<_>, _>>()?)
    }

    /// Everything that `script` sees; `output` is the file it may write its outputs to.
    pub(crate) fn of_script(&self, script: &Script, output: &Path) -> BTreeMap<OsString, OsString> {
        let passes = |name: &OsStr| {
            PASSED_ON.iter().any(|passed| name == *passed) || name.as_bytes().starts_with(b"LC_")
        };
        let mut seen: BTreeMap<OsString, OsString> = self
            .0
            .iter()
            .filter(|(name, _)| passes(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        // There is no terminal: scripts should not draw.
        seen.insert("TERM".into(), "dumb".into());
        for (name, value) in &script.env {
            // A file that sets `TOW_FENCE` could otherwise defeat the check of stale writers.
            if !name.starts_with(RESERVED_PREFIX) {
                seen.insert(name.into(), value.into());
            }
        }
        // After `env`: a variable of the same name must not replace the value that is masked.
        for name in &script.secrets {
            if let Some(value) = self.0.get(OsStr::new(name)) {
                seen.insert(name.into(), value.clone());
            }
        }
        seen.insert("TOW_RUN_ID".into(), script.run.as_str().into());
        seen.insert("TOW_JOB".into(), script.job.as_str().into());
        seen.insert("TOW_ATTEMPT".into(), script.attempt.to_string().into());
        seen.insert("TOW_FENCE".into(), script.fence.to_string().into());
        seen.insert("TOW_OUTPUT".into(), output.into());
        if let Some(root) = &script.root {
            seen.insert("TOW_ROOT".into(), root.into());
        }
        if let Some(traceparent) = &script.traceparent {
            seen.insert("TRACEPARENT".into(), of_script(traceparent).into());
        }
        seen
    }
}

/// Shows names only: values may be secret.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self(variables.filter(|(name, _)| name != TOKEN_VARIABLE).collect())
    }
}

/// The first name among the job's variables that no environment can carry, if there is one.
pub(crate) fn unusable_name(env: &BTreeMap<String, String>) -> Option<&str> {
    let unusable = |name: &str, value: &str| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    env.iter().find(|(name, value)| unusable(name, value)).map(|(name, _)| name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_shuts_other_processes_out_of_its_memory() {
        shut_out_jobs().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
    }
}
