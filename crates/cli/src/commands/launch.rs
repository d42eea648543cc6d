//! The hidden subcommands by which containers start: this program executed anew, before it reads any argument as a
//! user's.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use runtime::launch::INNER;

/// Becomes a container's process where the arguments ask for it.
pub fn by_name(args: &[OsString]) -> Option<ExitCode> {
    let [_, stage, bundle, rest @ ..] = args else { return None };
    if stage != INNER {
        return None;
    }
    let ready = rest.first().and_then(|number| number.to_str()?.parse().ok());
    Some(match runtime::launch::inner(Path::new(bundle), ready) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("strata: {error}");
            ExitCode::from(error.exit_code())
        }
    })
}
