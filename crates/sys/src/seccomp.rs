//! A filter of system calls for this thread and what it starts.
//!
//! Source: seccomp(2), `SECCOMP_SET_MODE_FILTER`.

use rustix::io::Errno;

use crate::{Error, Result};

/// One instruction of classic BPF, as the kernel takes it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where a comparison holds.
    pub if_true: u8,
    /// The same where it does not.
    pub if_false: u8,
    /// Operand.
    pub operand: u32,
}

/// Has the kernel ask `program` about each system call of this thread from now on, and of all that it starts; for good.
/// `flags` are `SECCOMP_FILTER_FLAG_*`.
///
/// # Errors
/// EACCES without CAP_SYS_ADMIN and no-new-privileges; EINVAL for a program that the kernel takes for none.
pub fn filter(program: &[Instruction], flags: u32) -> Result<()> {
    let fail = |source| Error::new("seccomp", program.len(), source);
    let len = u16::try_from(program.len()).map_err(|_| fail(Errno::TOOBIG))?;
    let given = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions, which have its layout and live through the call.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const given)
    };
    if done == 0 {
        return Ok(());
    }
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(fail(Errno::from_raw_os_error(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_the_kernels() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
        assert_eq!(align_of::<Instruction>(), align_of::<libc::sock_filter>());
    }
}
