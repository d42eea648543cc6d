//! The hidden subcommands by which containers start: this program executed anew, before it reads any argument as a
//! user's.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use runtime::launch::{GUARD, INNER};

/// Becomes a container's process, or the runtime that starts one, where the arguments ask for it.
pub fn by_name(args: &[OsString]) -> Option<ExitCode> {
    let [_, stage, what, rest @ ..] = args else { return None };
    let became = if stage == INNER {
        let ready = rest.first().and_then(|number| number.to_str()?.parse().ok());
        runtime::launch::inner(Path::new(what), ready)
    } else if stage == GUARD {
        runtime::launch::guard(Path::new(what), rest)
    } else {
        return None;
    };
    Some(match became {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("strata: {error}");
            ExitCode::from(error.exit_code())
        }
    })
}
