//! What a run was asked to be, as its first event and each new plan say it. The run itself and every
//! list of runs hold one.

use serde::{Deserialize, Serialize};

use crate::{
    event::{Fact, RunEvent},
    gate::{Authors, Identity},
    ids::{Actor, Digest, RunId, StageName},
    source::Source,
    time::Timestamp,
};

/// What a run was asked to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The run.
    pub run: RunId,
    /// What people call the pipeline.
    pub pipeline: String,
    /// The pipeline file, as the client named it.
    pub file: String,
    /// The folder the scripts run in, as the client named it.
    pub folder: String,
    /// Digest of the file's bytes.
    pub file_sha256: Digest,
    /// Digest of the plan.
    pub plan_sha256: Digest,
    /// The stages in order.
    pub stages: Vec<StageName>,
    /// Most jobs that run at once.
    pub parallelism: u32,
    /// Gates are approved by the requester as soon as they are reached.
    pub gates_preapproved: bool,
    /// How long the whole run may take, in milliseconds, from its beginning or its last resume.
    pub timeout_ms: Option<u64>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// The files of the run. `None`: they lie in `folder`, and workers share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Who asked.
    pub requested_by: Actor,
    /// What is known about them.
    pub requester: Identity,
    /// Who replaced the plan since then, the newest last.
    pub accepted: Vec<(Actor, Identity)>,
    /// Who wrote the pipeline file. `None`: nobody knows.
    pub authors: Option<Authors>,
    /// When they asked.
    pub created_at: Timestamp,
}

impl Header {
    /// What the run that `fact` begins was asked to be, if it begins one.
    pub(crate) fn begin(fact: &Fact) -> Option<Self> {
        let RunEvent::RunCreated {
            run,
            pipeline,
            file,
            file_sha256,
            plan_sha256,
            stages,
            jobs: _,
            parallelism,
            gates_preapproved,
            due,
            traceparent,
            folder,
            idempotency_key: _,
            source,
            requester,
            authors,
        } = &fact.event
        else {
            return None;
        };
        Some(Self {
            run: run.clone(),
            pipeline: pipeline.clone(),
            file: file.clone(),
            folder: folder.clone(),
            file_sha256: *file_sha256,
            plan_sha256: *plan_sha256,
            stages: stages.clone(),
            parallelism: *parallelism,
            gates_preapproved: *gates_preapproved,
            timeout_ms: due.map(|due| due.ms_since(fact.at)),
            traceparent: traceparent.clone(),
            source: source.clone(),
            requested_by: fact.by.clone(),
            requester: requester.clone(),
            accepted: Vec::new(),
            authors: authors.clone(),
            created_at: fact.at,
        })
    }

    /// Takes over what `fact` replaces, if it replaces the plan.
    pub(crate) fn replace(&mut self, fact: &Fact) {
        let RunEvent::PlanReplaced {
            file_sha256,
            plan_sha256,
            stages,
            jobs: _,
            timeout_ms,
            source,
            requester,
            authors,
        } = &fact.event
        else {
            return;
        };
        (self.file_sha256, self.plan_sha256) = (*file_sha256, *plan_sha256);
        self.stages.clone_from(stages);
        self.timeout_ms = *timeout_ms;
        if source.is_some() {
            self.source.clone_from(source);
        }
        self.authors.clone_from(authors);
        // `--yes` approved the plan that its sender knew. Were it to open the gates of a plan that
        // another person sends, their scripts would run on an approval in the sender's name.
        self.gates_preapproved &= fact.by == self.requested_by;
        self.accepted.retain(|(by, _)| *by != fact.by);
        self.accepted.push((fact.by.clone(), requester.clone()));
    }

    /// The header of a run whose first record, read at about `at`, cannot be read.
    pub(crate) fn unreadable(run: RunId, at: Timestamp) -> Self {
        Self {
            run,
            pipeline: String::new(),
            file: String::new(),
            folder: String::new(),
            file_sha256: Digest([0; 32]),
            plan_sha256: Digest([0; 32]),
            stages: Vec::new(),
            parallelism: 0,
            gates_preapproved: false,
            timeout_ms: None,
            traceparent: None,
            source: None,
            requested_by: Actor::timer(),
            requester: Identity::default(),
            accepted: Vec::new(),
            authors: None,
            created_at: at,
        }
    }
}
