//! Which role may send which request: one table. A request that is not in it is refused.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What an identity may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads runs and what their jobs printed.
    Viewer,
    /// Starts, resumes, retries, cancels and imports runs.
    Operator,
    /// Approves and rejects gates.
    Approver,
    /// Runs jobs.
    Worker,
    /// Reads everything and checks the log; changes nothing.
    Auditor,
    /// Looks after workers. Cannot approve, and cannot start runs.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 6] =
        [Self::Viewer, Self::Operator, Self::Approver, Self::Worker, Self::Auditor, Self::Admin];

    /// The role in one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Approver => "approver",
            Self::Worker => "worker",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A word that names no role.
#[derive(Debug, thiserror::Error)]
#[error("a role is one of viewer, operator, approver, worker, auditor, admin")]
pub struct RoleUnknown;

impl FromStr for Role {
    type Err = RoleUnknown;

    fn from_str(text: &str) -> Result<Self, RoleUnknown> {
        Self::ALL.into_iter().find(|role| role.word() == text).ok_or(RoleUnknown)
    }
}

/// Those who read runs.
const READERS: &[Role] =
    &[Role::Viewer, Role::Operator, Role::Approver, Role::Auditor, Role::Admin];

/// Every request of the contract, and the roles that may make it: any one of them is enough.
pub(crate) const TABLE: [(&str, &[Role]); 29] = [
    ("/towpath.v1.RunsService/StartRun", &[Role::Operator]),
    ("/towpath.v1.RunsService/GetRun", READERS),
    ("/towpath.v1.RunsService/ListRuns", READERS),
    ("/towpath.v1.RunsService/GetJob", READERS),
    ("/towpath.v1.RunsService/ListJobs", READERS),
    ("/towpath.v1.RunsService/ExplainJob", READERS),
    ("/towpath.v1.RunsService/ResumeRun", &[Role::Operator]),
    ("/towpath.v1.RunsService/RetryJob", &[Role::Operator]),
    ("/towpath.v1.RunsService/CancelRun", &[Role::Operator]),
    ("/towpath.v1.RunsService/ImportRun", &[Role::Operator]),
    ("/towpath.v1.RunsService/ReadOutput", READERS),
    ("/towpath.v1.RunsService/ReadArtifact", READERS),
    ("/towpath.v1.GatesService/ListGates", READERS),
    ("/towpath.v1.GatesService/ApproveGate", &[Role::Approver]),
    ("/towpath.v1.GatesService/RejectGate", &[Role::Approver]),
    ("/towpath.v1.LogService/Follow", READERS),
    // It reads the whole store, for minutes.
    ("/towpath.v1.LogService/Check", &[Role::Auditor, Role::Admin]),
    // Every client asks for the version first: who may do nothing else must still learn why.
    ("/towpath.v1.LogService/Describe", &Role::ALL),
    ("/towpath.v1.WorkersService/Session", &[Role::Worker]),
    ("/towpath.v1.WorkersService/ListWorkers", READERS),
    ("/towpath.v1.WorkersService/DrainWorker", &[Role::Operator, Role::Admin]),
    ("/towpath.v1.WorkersService/WatchDemand", READERS),
    ("/towpath.v1.BlobsService/FindBlob", &[Role::Operator]),
    ("/towpath.v1.BlobsService/PutBlob", &[Role::Operator]),
    ("/towpath.v1.BlobsService/FetchBlob", &[Role::Worker]),
    ("/externalscaler.ExternalScaler/IsActive", READERS),
    ("/externalscaler.ExternalScaler/StreamIsActive", READERS),
    ("/externalscaler.ExternalScaler/GetMetricSpec", READERS),
    ("/externalscaler.ExternalScaler/GetMetrics", READERS),
];

/// Where the metrics are, which are no gRPC.
pub(crate) const METRICS: &str = "/metrics";

/// The roles of which one is needed for the request at `path`. None: it is always refused.
pub(crate) fn needed(path: &str) -> &'static [Role] {
    if path == METRICS {
        return READERS;
    }
    let row = TABLE.iter().find(|(known, _)| *known == path);
    // A request that was added to the contract and forgotten here is refused to all.
    row.map_or(&[], |(_, allowed)| allowed)
}

/// Whether a client with `roles` may send the request at `path`.
pub(crate) fn may(roles: &[Role], path: &str) -> bool {
    needed(path).iter().any(|role| roles.contains(role))
}

/// `roles` in a sentence, with `between` before the last.
pub(crate) fn listed(roles: &[Role], between: &str) -> String {
    match roles {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [most @ .., last] => {
            let most: Vec<&str> = most.iter().map(|role| role.word()).collect();
            format!("{} {between} {last}", most.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    /// Every method of the compiled contract.
    fn contract() -> BTreeSet<String> {
        let all = prost_types::FileDescriptorSet::decode(towpath_proto::DESCRIPTORS).unwrap();
        let mut paths = BTreeSet::new();
        for file in &all.file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    paths.insert(format!("/{package}.{service}/{}", method.name()));
                }
            }
        }
        paths
    }

    #[test]
    fn every_request_of_the_contract_has_one_row_and_every_row_a_request() {
        let rows: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(rows.len(), TABLE.len(), "no path twice");
        assert_eq!(rows, contract());
    }

    #[test]
    fn every_role_may_do_what_is_written_here_and_nothing_else() {
        // viewer, operator, approver, worker, auditor, admin
        let expected = [
            ("towpath.v1.RunsService/StartRun", "-o----"),
            ("towpath.v1.RunsService/GetRun", "voa-ud"),
            ("towpath.v1.RunsService/ListRuns", "voa-ud"),
            ("towpath.v1.RunsService/GetJob", "voa-ud"),
            ("towpath.v1.RunsService/ListJobs", "voa-ud"),
            ("towpath.v1.RunsService/ExplainJob", "voa-ud"),
            ("towpath.v1.RunsService/ResumeRun", "-o----"),
            ("towpath.v1.RunsService/RetryJob", "-o----"),
            ("towpath.v1.RunsService/CancelRun", "-o----"),
            ("towpath.v1.RunsService/ImportRun", "-o----"),
            ("towpath.v1.RunsService/ReadOutput", "voa-ud"),
            ("towpath.v1.RunsService/ReadArtifact", "voa-ud"),
            ("towpath.v1.GatesService/ListGates", "voa-ud"),
            ("towpath.v1.GatesService/ApproveGate", "--a---"),
            ("towpath.v1.GatesService/RejectGate", "--a---"),
            ("towpath.v1.LogService/Follow", "voa-ud"),
            ("towpath.v1.LogService/Check", "----ud"),
            ("towpath.v1.LogService/Describe", "voawud"),
            ("towpath.v1.WorkersService/Session", "---w--"),
            ("towpath.v1.WorkersService/ListWorkers", "voa-ud"),
            ("towpath.v1.WorkersService/DrainWorker", "-o---d"),
            ("towpath.v1.WorkersService/WatchDemand", "voa-ud"),
            ("towpath.v1.BlobsService/FindBlob", "-o----"),
            ("towpath.v1.BlobsService/PutBlob", "-o----"),
            ("towpath.v1.BlobsService/FetchBlob", "---w--"),
            ("externalscaler.ExternalScaler/IsActive", "voa-ud"),
            ("externalscaler.ExternalScaler/StreamIsActive", "voa-ud"),
            ("externalscaler.ExternalScaler/GetMetricSpec", "voa-ud"),
            ("externalscaler.ExternalScaler/GetMetrics", "voa-ud"),
        ];
        assert_eq!(expected.len(), contract().len());
        for (name, allowed) in expected {
            let path = format!("/{name}");
            for (role, letter) in Role::ALL.into_iter().zip(allowed.chars()) {
                assert_eq!(may(&[role], &path), letter != '-', "{role} at {path}");
            }
            assert!(!may(&[], &path), "nobody at {path}");
            assert!(may(&Role::ALL, &path), "everybody at {path}");
        }
    }

    #[test]
    fn methods_missing_from_the_table_are_forbidden() {
        for path in [
            "",
            "/",
            "/towpath.v1.RunsService/Nothing",
            "/towpath.v1.RunsService/GetRun/",
            "/x.Y/Z",
        ] {
            assert!(!may(&Role::ALL, path), "{path}");
        }
    }

    #[test]
    fn gates_may_name_the_roles_that_there_are() {
        assert_eq!(Role::ALL.map(Role::word), towpath_engine::gate::ROLES);
    }

    #[test]
    fn roles_are_listed_as_people_say_it() {
        let [viewer, operator, approver, ..] = Role::ALL;
        assert_eq!(listed(&[], "or"), "none");
        assert_eq!(listed(&[viewer], "or"), "viewer");
        assert_eq!(listed(&[viewer, operator], "and"), "viewer and operator");
        assert_eq!(listed(&[viewer, operator, approver], "or"), "viewer, operator or approver");
    }

    #[test]
    fn a_role_is_read_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.word().parse::<Role>().unwrap(), role);
        }
        assert!("Admin".parse::<Role>().is_err());
    }
}
