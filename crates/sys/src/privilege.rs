//! What this process may do that another may not.

use crate::{Error, Result};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Runs `run` in a thread that may not keep set-user-ID on what it writes (`CAP_FSETID`), as for what the kernel is to do
/// in our name: it goes by what the thread may do that registers the file.
///
/// Source: capabilities(7). Where the capability can't be put down, `run` is not run.
///
/// # Errors
/// The kernel's, before or after.
pub fn without_fsetid<T>(run: impl FnOnce() -> T) -> Result<T> {
    let fail = |name: &'static str| move |e| Error::new(name, "", e);
    let all = capabilities(None).map_err(fail("capget"))?;
    if !all.effective.contains(CapabilitySet::FSETID) {
        return Ok(run());
    }
    let mut less = all;
    less.effective.remove(CapabilitySet::FSETID);
    set_capabilities(None, less).map_err(fail("capset"))?;
    let done = run();
    set_capabilities(None, all).map_err(fail("capset"))?;
    Ok(done)
}

/// Whether this is root, and not only in a user namespace of its own.
///
/// Source: user_namespaces(7): the initial namespace maps every id to itself.
pub fn is_initial_root() -> bool {
    let whole = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(whole)
}
