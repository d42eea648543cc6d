//! Makes the service's types from their description; no protoc is needed.

fn main() {
    let files = protox::compile(["snapshots.proto"], ["proto"]).unwrap_or_else(|e| panic!("{e}"));
    let built = tonic_prost_build::configure().build_client(true).compile_fds(files);
    built.unwrap_or_else(|e| panic!("{e}"));
    println!("cargo::rerun-if-changed=proto");
}
