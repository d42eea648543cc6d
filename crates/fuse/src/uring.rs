//! FUSE over io_uring (Linux 6.14): a queue per core, and on each some threads with a ring and buffers of their own.
//!
//! An entry is one request at a time: its headers and its payload lie in buffers that were registered once, and one
//! system call answers a request and waits for the next. More than one thread serves each queue so that a slow request
//! (a copy-up) does not hold back the others of its core; the kernel prefers the entry that was used last, so the
//! others cost nothing while there is no need for them.

use crate::dispatch::answer;
use crate::filesystem::FileSystem;
use crate::request::parts;
use crate::session::{MAX_WRITE, MESSAGE};
use crate::wire::{
    InHeader, OutHeader, Plain, URING_CMD_COMMIT_AND_FETCH, URING_CMD_REGISTER, UringCmdReq,
    UringReqHeader, WRITE,
};
use io_uring::{IoUring, cqueue, opcode::UringCmd80, squeue, types::Fd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Threads on each of so many queues: fewer where there are many cores, for each has buffers of two megabytes, though
/// untouched ones cost address space only.
fn per_queue(queues: u16) -> usize {
    if queues <= 16 { 3 } else { 2 }
}

/// Whether the kernel's administrator has enabled it, by the parameter `enable_uring` of the module `fuse`.
#[must_use]
pub fn enabled() -> bool {
    std::fs::read("/sys/module/fuse/parameters/enable_uring")
        .is_ok_and(|value| value.starts_with(b"Y"))
}

/// The kernel wants an entry on every queue, of which it has one for each core that there may ever be.
fn queues() -> io::Result<u16> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = possible.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u16>().ok());
    last.and_then(|last| last.checked_add(1))
        .ok_or_else(|| io::Error::other("the cores can't be counted"))
}

/// Keeps this thread on one core: a queue has the requests that are made there, and to change cores costs more than to
/// answer one (twice the time, measured). Where that is not allowed the scheduler decides.
fn stay_on(core: u16) {
    let mut cores = rustix::thread::CpuSet::new();
    if usize::from(core) < rustix::thread::CpuSet::MAX_CPU {
        cores.set(usize::from(core));
        if let Err(error) = rustix::thread::sched_setaffinity(None, &cores) {
            tracing::debug!(core, %error, "a thread of the rings is not kept on its core");
        }
    }
}

/// Threads with their rings, waiting for the kernel's consent and then serving.
pub(crate) struct Rings {
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// Dropped unused, it ends the threads.
    go: Vec<Sender<()>>,
    /// What each thread says of its registration.
    registered: Receiver<io::Result<()>>,
}

impl Rings {
    /// Starts the threads and makes their rings; nothing is registered yet.
    pub fn prepare<F: FileSystem>(device: &Arc<OwnedFd>, fs: &Arc<F>) -> io::Result<Self> {
        let queues = queues()?;
        let (made, was_made) = channel();
        let (register, registered) = channel();
        let mut rings = Self { threads: Vec::new(), go: Vec::new(), registered };
        for qid in 0..queues {
            for index in 0..per_queue(queues) {
                let (go, wait) = channel();
                rings.go.push(go);
                let (device, fs) = (Arc::clone(device), Arc::clone(fs));
                let (made, register) = (made.clone(), register.clone());
                let thread = std::thread::Builder::new().name(format!("fuse-{qid}.{index}"));
                rings.threads.push(thread.spawn(move || {
                    stay_on(qid);
                    // A ring belongs to the thread that makes it.
                    let (entry, result) = match Entry::new(device, qid) {
                        Ok(entry) => (Some(entry), Ok(())),
                        Err(error) => (None, Err(error)),
                    };
                    let heard = made.send(result).is_ok();
                    // The channel ends once every thread has reported.
                    drop(made);
                    let heard = heard && wait.recv().is_ok();
                    let Some(mut entry) = entry.filter(|_| heard) else { return Ok(()) };
                    let result = entry.register();
                    let failed = result.is_err();
                    if register.send(result).is_err() || failed {
                        return Ok(());
                    }
                    entry.serve(&*fs)
                })?);
            }
        }
        drop(made);
        while let Ok(result) = was_made.recv() {
            result?;
        }
        Ok(rings)
    }

    /// Registers every entry, upon which requests come.
    pub fn go(&self) -> io::Result<()> {
        for go in &self.go {
            go.send(()).map_err(|_| io::Error::other("a thread of the rings has ended"))?;
        }
        for _ in &self.go {
            self.registered
                .recv()
                .map_err(|_| io::Error::other("a thread of the rings has ended"))??;
        }
        Ok(())
    }

    /// Waits until the mount is gone.
    pub fn join(self) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.threads {
            let ended = thread.join();
            let ended =
                ended.unwrap_or_else(|_| Err(io::Error::other("a thread of the rings panicked")));
            result = result.and(ended);
        }
        result
    }
}

/// One entry of one queue, with the buffers that the kernel fills.
struct Entry {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: Arc<OwnedFd>,
    qid: u16,
    /// Boxed, and never reached but by this thread while the kernel does not have it.
    header: Box<UringReqHeader>,
    payload: Vec<u8>,
    iovecs: Box<[libc::iovec; 2]>,
    /// A request came before it was waited for.
    early: bool,
    /// What came with a request, so that the answer can take its place.
    copy: Vec<u8>,
}

impl Entry {
    fn new(device: Arc<OwnedFd>, qid: u16) -> io::Result<Self> {
        let mut header = Box::new(UringReqHeader::zero());
        let mut payload = vec![0; MAX_WRITE as usize];
        let iovecs = Box::new([
            libc::iovec {
                iov_base: (&raw mut *header).cast(),
                iov_len: size_of::<UringReqHeader>(),
            },
            libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() },
        ]);
        let build = |defer: bool| {
            let mut builder = IoUring::<squeue::Entry128, cqueue::Entry>::builder();
            if defer {
                builder.setup_single_issuer().setup_defer_taskrun();
            }
            builder.build(2)
        };
        let ring = build(true).or_else(|_| build(false))?;
        Ok(Self {
            ring,
            device,
            qid,
            header,
            payload,
            iovecs,
            copy: vec![0; MESSAGE],
            early: false,
        })
    }

    fn push(&mut self, command: u32, commit_id: u64) -> io::Result<()> {
        let request = UringCmdReq { flags: 0, commit_id, qid: self.qid, padding: [0; 6] };
        let mut bytes = [0; 80];
        bytes[..size_of::<UringCmdReq>()].copy_from_slice(request.bytes());
        let mut entry = UringCmd80::new(Fd(self.device.as_raw_fd()), command).cmd(bytes);
        if command == URING_CMD_REGISTER {
            entry = entry.addr(Some(self.iovecs.as_ptr() as u64));
        }
        let mut entry = entry.build();
        if command == URING_CMD_REGISTER {
            // The builder has no `len`: a u32 at byte 24 of an SQE, the count of iovecs.
            // SAFETY: `Entry128` is `repr(C)` over the kernel's SQE of 128 bytes, of which bytes 24 to 28 are `len`.
            unsafe { (&raw mut entry).cast::<u8>().add(24).cast::<u32>().write_unaligned(2) };
        }
        // SAFETY: what the entry points to (device, buffers, iovecs) belongs to `self`, whose ring is dropped with it;
        // the kernel has ended every command of the ring before it lets go of the buffers.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the ring is full"))
    }

    fn register(&mut self) -> io::Result<()> {
        self.push(URING_CMD_REGISTER, 0)?;
        self.ring.submit()?;
        // A refusal is there at once.
        match self.ring.completion().next().map(|entry| entry.result()) {
            Some(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            Some(_) => {
                self.early = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn serve<F: FileSystem>(&mut self, fs: &F) -> io::Result<()> {
        loop {
            if std::mem::take(&mut self.early) {
                self.answer(fs);
                self.push(URING_CMD_COMMIT_AND_FETCH, self.header.ring_ent_in_out.commit_id)?;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let Some(result) = self.ring.completion().next().map(|entry| entry.result()) else {
                continue;
            };
            match -result {
                0 => {}
                libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED => {
                    return Ok(());
                }
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
            self.answer(fs);
            self.push(URING_CMD_COMMIT_AND_FETCH, self.header.ring_ent_in_out.commit_id)?;
        }
    }

    /// Answers the request in the buffers, in the buffers.
    fn answer<F: FileSystem>(&mut self, fs: &F) {
        let header = &mut *self.header;
        let entry = header.ring_ent_in_out;
        let input = InHeader::take(&header.in_out).unwrap_or_else(InHeader::zero);
        let size = (entry.payload_sz as usize).min(self.payload.len());
        let op_size = (input.len as usize).checked_sub(size_of::<InHeader>() + size);
        let head = op_size.and_then(|op_size| header.op_in.get(..op_size));
        let out = if input.opcode == WRITE {
            // The data stays where it is; the answer is short.
            let message = head.and_then(|head| parts(&input, head, &self.payload[..size]));
            let out = answer(fs, message, input.unique, &mut self.copy);
            let len = out.map_or(0, payload_len);
            self.payload[..len].copy_from_slice(&self.copy[..len]);
            out
        } else {
            self.copy[..size].copy_from_slice(&self.payload[..size]);
            let message = head.and_then(|head| parts(&input, head, &self.copy[..size]));
            answer(fs, message, input.unique, &mut self.payload)
        };
        // Each request here wants its answer, be it empty: its entry is taken until then.
        let out = out.unwrap_or(OutHeader {
            len: size_of::<OutHeader>() as u32,
            error: 0,
            unique: input.unique,
        });
        header.in_out[..size_of::<OutHeader>()].copy_from_slice(out.bytes());
        header.ring_ent_in_out.payload_sz = payload_len(out) as u32;
    }
}

fn payload_len(header: OutHeader) -> usize {
    header.len as usize - size_of::<OutHeader>()
}
