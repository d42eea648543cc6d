//! A connection to the kernel: the handshake, then threads that read requests and write answers.

use crate::dispatch::answer;
use crate::filesystem::FileSystem;
use crate::notify::Connection;
use crate::request::split;
use crate::uring::{Rings, enabled};
use crate::wire::{
    INIT, InHeader, InitIn, InitOut, MAJOR, MINOR, OLDEST_MINOR, OutHeader, Plain, init,
};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Pages of the largest request.
const MAX_PAGES: u16 = 256;
/// Payload of the largest write and read: the pages above.
pub(crate) const MAX_WRITE: u32 = MAX_PAGES as u32 * 4096;
/// A message: headers, extensions and names before the payload fit a page.
pub(crate) const MESSAGE: usize = MAX_WRITE as usize + 8192;

/// What the server would like of the kernel.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Threads that serve; 0 for one per core, two at least and eight at most.
    pub threads: usize,
    /// Ask for passthrough.
    pub passthrough: bool,
    /// Depth of stacked file systems: 1 lets this mount lie under an overlay, 2 lets a backing file be on one.
    pub max_stack_depth: u32,
    /// Ask for the kernel's write-back cache (not together with passthrough).
    pub writeback: bool,
    /// The mount checks permissions in the kernel, so that mounts with mapped ids may be made of it.
    pub idmap: bool,
    /// Talk over io_uring where the kernel has it enabled.
    pub uring: bool,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            passthrough: true,
            max_stack_depth: 1,
            writeback: false,
            idmap: true,
            uring: true,
        }
    }
}

/// What both sides agreed upon.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated {
    /// The kernel's protocol minor.
    pub minor: u32,
    /// Flags in force, of [`crate::wire::init`].
    pub flags: u64,
}

impl Negotiated {
    /// Whether a flag of [`crate::wire::init`] is in force.
    #[must_use]
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// A connection that has shaken hands and can serve.
pub struct Session<F> {
    fs: Arc<F>,
    device: Arc<OwnedFd>,
    threads: usize,
    negotiated: Negotiated,
    rings: Option<Rings>,
}

impl<F: FileSystem> Session<F> {
    /// Answers the kernel's INIT on `device` (blocking until it comes, so only once a mount exists or is being made).
    ///
    /// # Errors
    /// Of the device, and a kernel that is older than Linux 5.10.
    pub fn start(device: OwnedFd, fs: Arc<F>, config: &SessionConfig) -> io::Result<Self> {
        let device = Arc::new(device);
        // Once agreed upon, the kernel waits for the rings: so they have to exist before.
        let rings = (config.uring && enabled()).then(|| Rings::prepare(&device, &fs));
        let rings = rings.and_then(|rings| {
            rings
                .inspect_err(|error| tracing::info!(%error, "no io_uring: the classic device"))
                .ok()
        });
        let negotiated = handshake(&device, config, rings.is_some())?;
        fs.init(&negotiated);
        let rings = rings.filter(|_| negotiated.has(init::OVER_IO_URING));
        if let Some(rings) = &rings {
            rings.go()?;
        }
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = match config.threads {
            // The device is left with forgets, and what comes before the rings are ready.
            0 if rings.is_some() => 1,
            0 => cores.clamp(2, 8),
            threads => threads,
        };
        Ok(Self { fs, device, threads, negotiated, rings })
    }

    /// What was agreed upon.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// The connection, for notifications and backing files.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::new(Arc::clone(&self.device))
    }

    /// Serves until the mount is gone.
    ///
    /// # Errors
    /// Of the device, other than its end.
    pub fn serve(self) -> io::Result<()> {
        let connection = self.connection();
        let fs = &*self.fs;
        std::thread::scope(|scope| {
            let mut workers = Vec::new();
            for index in 1..self.threads {
                // Without a clone (no permission on the device node) the threads share one queue, which only costs time.
                let device =
                    connection.clone_device().map_or_else(|_| Arc::clone(&self.device), Arc::new);
                let worker = std::thread::Builder::new().name(format!("fuse-{index}"));
                workers.push(worker.spawn_scoped(scope, move || work(&device, fs))?);
            }
            let mut result = work(&self.device, fs);
            for worker in workers {
                let ended = worker.join().unwrap_or_else(|_| {
                    Err(io::Error::other("a thread of the FUSE session panicked"))
                });
                result = result.and(ended);
            }
            match self.rings {
                Some(rings) => result.and(rings.join()),
                None => result,
            }
        })
    }
}

fn work<F: FileSystem>(device: &OwnedFd, fs: &F) -> io::Result<()> {
    const HEADER: usize = size_of::<OutHeader>();
    let mut message = vec![0; MESSAGE];
    let mut buffer = vec![0; MESSAGE];
    while let Some(count) = read(device, &mut message)? {
        let message = &message[..count];
        let Some(unique) = InHeader::take(message).map(|header| header.unique) else { continue };
        if let Some(header) = answer(fs, split(message), unique, &mut buffer[HEADER..]) {
            buffer[..HEADER].copy_from_slice(header.bytes());
            write(device, &buffer[..header.len as usize])?;
        }
    }
    Ok(())
}

/// The next message; `None` when the mount is gone.
fn read(device: &OwnedFd, message: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::io::read(device.as_fd(), &mut *message) {
            Ok(0) => return Ok(None),
            Ok(count) => return Ok(Some(count)),
            // ENOENT: the request was interrupted before it was read.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::NOENT) => {}
            Err(rustix::io::Errno::NODEV | rustix::io::Errno::CONNABORTED) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn write(device: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    loop {
        match rustix::io::write(device.as_fd(), bytes) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            // ENOENT: nobody waits for the answer any more. ENODEV: the next read sees it.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV) => return Ok(()),
            // A reply that the kernel refuses is our error about one request, which it has ended with EIO.
            Err(rustix::io::Errno::INVAL) => {
                tracing::warn!("the kernel refused an answer");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn handshake(device: &OwnedFd, config: &SessionConfig, uring: bool) -> io::Result<Negotiated> {
    let mut message = vec![0; MESSAGE];
    loop {
        let count = read(device, &mut message)?.ok_or_else(|| {
            io::Error::other(
                "the mount went away before the kernel and we had agreed on a protocol",
            )
        })?;
        let malformed = || io::Error::other("the kernel's first message is not a FUSE INIT");
        let header = InHeader::take(&message[..count])
            .filter(|header| header.opcode == INIT)
            .ok_or_else(malformed)?;
        // Older kernels send 16 bytes only; what is missing is zero.
        let mut body = [0; size_of::<InitIn>()];
        let sent = &message[size_of::<InHeader>()..count];
        let len = sent.len().min(body.len());
        body[..len].copy_from_slice(&sent[..len]);
        let input = InitIn::take(&body).ok_or_else(malformed)?;
        if input.major < MAJOR || (input.major == MAJOR && input.minor < OLDEST_MINOR) {
            let error = format!(
                "the kernel speaks FUSE {}.{}; {MAJOR}.{OLDEST_MINOR} (Linux 5.10) is the oldest that works",
                input.major, input.minor
            );
            send_init(device, header.unique, -libc::EPROTO, None)?;
            return Err(io::Error::new(io::ErrorKind::Unsupported, error));
        }
        let (output, negotiated) = negotiate(&input, config, uring);
        send_init(device, header.unique, 0, Some(&output))?;
        // A newer major sends INIT again, in ours.
        if input.major == MAJOR {
            return Ok(negotiated);
        }
    }
}

fn send_init(
    device: &OwnedFd,
    unique: u64,
    error: i32,
    output: Option<&InitOut>,
) -> io::Result<()> {
    let payload = output.map_or(&[][..], |output| output.bytes());
    let len = (size_of::<OutHeader>() + payload.len()) as u32;
    write(device, &[OutHeader { len, error, unique }.bytes(), payload].concat())
}

fn negotiate(input: &InitIn, config: &SessionConfig, uring: bool) -> (InitOut, Negotiated) {
    let mut wanted = init::ASYNC_READ
        | init::ATOMIC_O_TRUNC
        | init::EXPORT_SUPPORT
        | init::BIG_WRITES
        | init::DONT_MASK
        | init::HAS_IOCTL_DIR
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::POSIX_ACL
        | init::MAX_PAGES
        | init::CACHE_SYMLINKS
        // We own the layers: sizes never change behind the kernel's back, so pages are dropped only when we say so.
        | init::EXPLICIT_INVAL_DATA
        | init::HANDLE_KILLPRIV_V2
        | init::INIT_EXT
        | init::CREATE_SUPP_GROUP;
    if config.passthrough {
        wanted |= init::PASSTHROUGH;
    } else if config.writeback {
        wanted |= init::WRITEBACK_CACHE;
    }
    if config.idmap {
        wanted |= init::ALLOW_IDMAP;
    }
    if uring {
        wanted |= init::OVER_IO_URING;
    }
    let offered = u64::from(input.flags)
        | if input.flags & init::INIT_EXT as u32 != 0 { u64::from(input.flags2) << 32 } else { 0 };
    let flags = wanted & offered;
    let output = InitOut {
        major: MAJOR,
        minor: MINOR,
        // A bound: the kernel's own is smaller, until somebody raises it for this mount.
        max_readahead: MAX_WRITE,
        flags: flags as u32,
        max_background: 64,
        congestion_threshold: 48,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: MAX_PAGES,
        map_alignment: 0,
        flags2: (flags >> 32) as u32,
        max_stack_depth: if flags & init::PASSTHROUGH != 0 { config.max_stack_depth } else { 0 },
        request_timeout: 0,
        unused: [0; 11],
    };
    (output, Negotiated { minor: input.minor.min(MINOR), flags })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_taken() {
        let mut input = InitIn::zero();
        (input.major, input.minor, input.flags) = (7, 31, 0);
        let (output, negotiated) = negotiate(&input, &SessionConfig::default(), false);
        assert_eq!((negotiated.flags, output.max_stack_depth), (0, 0));
        input.flags = u32::MAX;
        input.flags2 = u32::MAX;
        let (output, negotiated) = negotiate(&input, &SessionConfig::default(), false);
        assert!(negotiated.has(init::PASSTHROUGH) && !negotiated.has(init::WRITEBACK_CACHE));
        assert_eq!(output.max_stack_depth, 1);
        let config =
            SessionConfig { passthrough: false, writeback: true, ..SessionConfig::default() };
        assert!(negotiate(&input, &config, true).1.has(init::WRITEBACK_CACHE));
    }
}
