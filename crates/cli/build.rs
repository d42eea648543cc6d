//! How the program is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The 28,000 addresses that a program of this size has to adjust as it starts are 688 KiB of its file, and 11 KiB
    // packed (glibc 2.36 and later read that, and the linker notes that they must). Each command reads them.
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
