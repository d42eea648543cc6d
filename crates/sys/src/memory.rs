//! The allocator of the C library, which keeps what was freed unless it is told otherwise.

/// Gives back to the kernel what was freed, in time that grows with the heap. Does nothing where the allocator is not
/// that of the GNU C library.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(1 << 20);
    }
}
