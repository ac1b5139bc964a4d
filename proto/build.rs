//! Compiles the contract without `protoc` on the machine.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=towpath/v1");
    println!("cargo:rerun-if-changed=externalscaler");
    let files = ["runs", "gates", "log", "workers", "blobs"];
    let files = files.map(|file| format!("towpath/v1/{file}.proto"));
    let others = ["externalscaler/externalscaler.proto".to_owned()];
    let descriptors = protox::compile(files.into_iter().chain(others), ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.binpb"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    // For those who look a message up in the contract: the client writes messages as JSON.
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".towpath.v1")
        .btree_map(".towpath.v1")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
