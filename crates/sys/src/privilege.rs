//! What this process may do that another may not.

/// Whether this is root, and not only in a user namespace of its own.
///
/// Source: user_namespaces(7): the initial namespace maps every id to itself.
pub fn is_initial_root() -> bool {
    let whole = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(whole)
}
