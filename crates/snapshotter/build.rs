//! Makes the services' types from their descriptions; no protoc is needed.

fn main() {
    let services =
        ["snapshots.proto", "diff.proto", "content.proto", "leases.proto", "health.proto"];
    let files = protox::compile(services, ["proto"]).unwrap_or_else(|e| panic!("{e}"));
    let built = tonic_prost_build::configure().build_client(true).compile_fds(files);
    built.unwrap_or_else(|e| panic!("{e}"));
    println!("cargo::rerun-if-changed=proto");
}
