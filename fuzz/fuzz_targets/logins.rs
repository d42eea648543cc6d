//! What registries ask for, and the files that say who is asked, and as whom.
#![no_main]

// The files alone, and not their crate, with which a TLS library would be built: that takes longer than the fuzzing.
#[path = "../../crates/registry/src/challenge.rs"]
mod challenge;
#[path = "../../crates/registry/src/config.rs"]
mod config;
#[path = "../../crates/registry/src/error.rs"]
#[allow(dead_code, reason = "most of them come from requests")]
mod error;

use std::fs;

use challenge::Challenge;
use config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(Challenge::Bearer { realm, .. }) = Challenge::parse(text) {
        assert!(text.contains(&realm));
    }
    let place = strata_fuzz::place();
    let (registries, logins) = (place.join("registries.conf"), place.join("auth.json"));
    fs::write(&registries, text).expect("a file");
    // A helper is a program: which are run is another test's.
    let runs = text.contains("cred") || text.contains('\\');
    fs::write(&logins, if runs { "{}" } else { text }).expect("a file");
    let config = Config { auth_files: vec![logins], registries: vec![registries] };
    for (registry, repository) in [
        ("a.example", "x"),
        ("a.example", "team/app"),
        ("docker.io", "library/x"),
        ("[::1]:5000", "é"),
    ] {
        if let Ok(places) = config.endpoints(registry, repository) {
            assert!(!places.is_empty());
        }
        if let Ok(Some(login)) = config.credentials(registry, repository) {
            assert!(!login.username.contains(':'));
        }
    }
});
