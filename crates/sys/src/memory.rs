//! Memory of this process that does not grow and shrink by itself as it should.

use std::os::fd::AsFd;

use rustix::process::{Resource, getrlimit};

/// Gives back to the kernel what was freed, in time that grows with the heap: the C library keeps it otherwise. Does nothing where the allocator is not
/// that of the GNU C library.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(1 << 20);
    }
}

/// Makes room for `count` descriptors, as far as this process may have them; `any` is one that is open.
///
/// The kernel's table of them grows by doubling, and in a process with threads each time waits until no processor looks
/// at the old one: 6 to 20 ms. To be called before there are threads.
///
/// Source: Linux `fs/file.c`, `expand_fdtable`.
pub fn reserve_descriptors(any: impl AsFd, count: u32) {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let last = u64::from(count).min(most).saturating_sub(1);
    let high = rustix::io::fcntl_dupfd_cloexec(any, last.try_into().unwrap_or(0));
    // What can't be had now is had later, at that price.
    drop(high);
}
