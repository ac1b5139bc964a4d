//! The contract as third parties get it: its form (buf's STANDARD rules, without buf and without a
//! network), and that no change breaks a client that was generated before.
//!
//! docs/testing.md says how to renew `contract.txt`, and how to run buf itself.

#[path = "contract/breaking.rs"]
mod breaking;
#[path = "contract/lint.rs"]
mod lint;

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// The files of our packages. Those of KEDA and of protobuf itself are not ours to change.
pub fn ours() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(towpath_proto::DESCRIPTORS).expect("the compiled contract");
    set.file.into_iter().filter(|file| file.package().starts_with("towpath.")).collect()
}
