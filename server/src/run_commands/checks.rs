//! Whether a request would be refused, without a store and without recording anything.
//!
//! A program that would have to make a store for a run asks here first: a refused command must not
//! leave an empty store behind. The rules are those of the requests themselves. What only a store
//! can say (an idempotency key that was used, a full disk) is said when it is open.

use tonic::{Request, Status};
use towpath_engine::{
    decide::{CarryOutError, Command, CreateRun, ImportRun, carry_out},
    ids::Actor,
    run::Run,
};
use towpath_proto::v1;

use super::{IMPORTED_PARALLELISM, creation, import};
use crate::{
    Clock as _, SystemClock,
    auth::Requester,
    command_error::CommandError,
    pipeline_files::{PipelineFiles, ReadFile},
    status, wire,
};

/// Whether the owner of a new store may start this run; else why not.
pub async fn check_start_run(request: v1::StartRunRequest) -> Result<(), Status> {
    check_start(Request::new(request)).await.map_err(status::of)
}

/// Whether the owner of a new store may import this record; else why not.
pub async fn check_import_run(request: v1::ImportRunRequest) -> Result<(), Status> {
    check_import(Request::new(request)).await.map_err(status::of)
}

async fn check_start(request: Request<v1::StartRunRequest>) -> Result<(), CommandError> {
    let requester = Requester::of(&request)?;
    let v1::StartRunRequest {
        file,
        parallelism,
        gates_preapproved,
        idempotency_key,
        emails,
        traceparent: _,
        actor: _,
    } = request.into_inner();
    let create = CreateRun {
        requester: requester.identity(&emails),
        parallelism,
        gates_preapproved,
        idempotency_key: Some(idempotency_key).filter(|key| !key.is_empty()),
        ..creation(read(file).await?)
    };
    decide(&Command::Create(create), &requester.actor)
}

async fn check_import(request: Request<v1::ImportRunRequest>) -> Result<(), CommandError> {
    let requester = Requester::of(&request)?;
    let v1::ImportRunRequest { file, record, actor: _ } = request.into_inner();
    let create = CreateRun {
        requester: requester.identity(&[]),
        parallelism: IMPORTED_PARALLELISM,
        ..creation(read(file).await?)
    };
    let jobs = import::jobs(&record)?;
    decide(&Command::Import(ImportRun { create, jobs }), &requester.actor)
}

async fn read(file: Option<v1::PipelineFile>) -> Result<ReadFile, CommandError> {
    PipelineFiles::new().read(wire::sent_file(file)?).await
}

/// Decides `command` on a run that does not exist yet, and drops what was decided.
fn decide(command: &Command, by: &Actor) -> Result<(), CommandError> {
    match carry_out(&mut Run::default(), command, by, SystemClock.now()) {
        Ok(_) => Ok(()),
        Err(CarryOutError::Refused(refusal) | CarryOutError::Unwritable(refusal)) => {
            Err(refusal.into())
        }
        Err(CarryOutError::Bug(bug)) => Err(bug.into()),
    }
}
