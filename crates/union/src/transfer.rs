//! Reads and writes that go on where the kernel stopped early.

use std::os::fd::AsFd;

use rustix::io::{Errno, pread, pwrite};

/// Fills `into` as far as the regular file goes.
pub(crate) fn read_some(fd: impl AsFd, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < into.len() {
        match pread(&fd, &mut into[done..], offset + done as u64) {
            // A file gives less only at its end: no second call to hear so.
            Ok(n) if n < into.len() - done => return Ok(done + n),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Writes as much of `data` as there is room for, and says why there is no more.
pub(crate) fn write_some(fd: impl AsFd, data: &[u8], offset: u64) -> (usize, Result<(), Errno>) {
    let mut done = 0;
    while done < data.len() {
        match pwrite(&fd, &data[done..], offset + done as u64) {
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return (done, Err(e)),
        }
    }
    (done, Ok(()))
}

/// As write(2) answers: what was written counts, and the error is told by the next write.
pub(crate) fn counted((done, result): (usize, Result<(), Errno>)) -> Result<usize, Errno> {
    match result {
        Err(e) if done == 0 => Err(e),
        _ => Ok(done),
    }
}
