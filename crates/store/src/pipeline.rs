//! One layer on its way from a source to the disk, in stages that overlap: fetch and hash the blob,
//! inflate it, hash the tar, unpack it.
//!
//! Each stage is a thread; chunks go from one to the next through short queues, so that memory is
//! bounded whatever a layer holds.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::error::{At, Error, Result};
use crate::id::Digest;
use crate::manifest::Descriptor;
use crate::source::{BlobSource, Progress};
use crate::tar::{apply, recipe};
use crate::writeback::Writeback;

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;
/// Chunks between two stages.
const QUEUE: usize = 8;
/// How often a source may fail in the middle of a blob, as long as some of it comes each time.
const RETRIES: u32 = 5;

/// Chunks that are used again.
#[derive(Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
        let mut chunk = self.0.lock().pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
        chunk.resize(CHUNK, 0);
        chunk
    }

    fn give(&self, chunk: Vec<u8>) {
        self.0.lock().push(chunk);
    }
}

/// The chunks that a queue brings, as one stream.
struct Chunks<'p> {
    from: Receiver<Arc<Vec<u8>>>,
    chunk: Arc<Vec<u8>>,
    at: usize,
    pool: &'p Pool,
}

impl<'p> Chunks<'p> {
    fn new(from: Receiver<Arc<Vec<u8>>>, pool: &'p Pool) -> Self {
        Self { from, chunk: Arc::new(Vec::new()), at: 0, pool }
    }
}

impl BufRead for Chunks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() {
            // The sender ends at the end of the stream, or having said why it can't go on.
            let Ok(next) = self.from.recv() else { return Ok(&[]) };
            let used = std::mem::replace(&mut self.chunk, next);
            self.at = 0;
            if let Ok(used) = Arc::try_unwrap(used)
                && used.capacity() >= CHUNK
            {
                self.pool.give(used);
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at = (self.at + count).min(self.chunk.len());
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let data = self.fill_buf()?;
        let count = data.len().min(into.len());
        into[..count].copy_from_slice(&data[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// What a layer is made of, and where.
pub(crate) struct Job<'j> {
    pub source: &'j dyn BlobSource,
    pub blob: &'j Descriptor,
    /// Where it is not known, any other name for the layer, for errors.
    pub diff_id: Digest,
    /// Whether `diff_id` is what the layer must have.
    pub known: bool,
    /// The layer's directory, with an empty `fs` in it.
    pub to: &'j Path,
    /// Where unfinished blobs are.
    pub partial: PathBuf,
    pub options: &'j apply::Options,
    pub objects: &'j (dyn apply::Objects + Sync),
    pub progress: &'j dyn Progress,
    pub writeback: &'j Writeback,
    /// Whether nobody wants the layer any more.
    pub stopped: &'j (dyn Fn() -> bool + Sync),
}

/// How much of a blob is still fetched after a stage behind has refused what came, to tell a blob that
/// was damaged on its way from a layer that is bad: bytes.
const AFTER_A_REFUSAL: u64 = 16 << 20;

/// A layer that was unpacked, and its blob as far as it was kept.
pub(crate) struct Unpacked {
    pub applied: apply::Applied,
    /// What the tar's digest is, and its bytes.
    pub tar: (Digest, u64),
    /// To be removed when the layer is the store's.
    pub partial: Option<Partial>,
}

/// Fetches, verifies and unpacks a layer.
///
/// # Errors
/// The source's; [`Error::Mismatch`]; [`Error::BadLayer`]; [`Error::Stopped`].
pub(crate) fn run(job: &Job<'_>) -> Result<Unpacked> {
    let pool = Pool::default();
    let (blob_to, blob_from) = sync_channel(QUEUE);
    let (tar_to, tar_from) = sync_channel(QUEUE);
    let (hash_to, hash_from) = sync_channel::<Arc<Vec<u8>>>(QUEUE);
    let (fetched, inflated, found, applied) = thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch(job, &pool, blob_to));
        let inflating = scope.spawn(|| {
            let blob = Chunks::new(blob_from, &pool);
            inflate(job, blob, &pool, &[tar_to, hash_to])
        });
        let hashing = scope.spawn(|| digest(hash_from, &pool));
        let applied = unpack(job, Chunks::new(tar_from, &pool));
        (fetching.join(), inflating.join(), hashing.join(), applied)
    });
    // In the order of the stages: what goes wrong in one follows from what went wrong before it.
    let partial = joined(fetched)?;
    joined(inflated)?;
    let tar = joined(found);
    let (found, applied) = (tar.0, applied?);
    if job.known && found != job.diff_id {
        let found = found.to_string();
        return Err(Error::Mismatch { what: "layer", expected: job.diff_id, found });
    }
    Ok(Unpacked { applied, tar, partial })
}

/// What a thread gave; its panic goes on in this one.
fn joined<T>(thread: thread::Result<T>) -> T {
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Unpacks a tar into the layer's directory `to`, in which is an empty `fs`.
///
/// # Errors
/// [`Error::BadLayer`]; what was unpacked until then is the caller's to remove.
pub(crate) fn unpack_tar(
    tar: impl BufRead,
    diff_id: Digest,
    to: &Path,
    options: &apply::Options,
    objects: &(dyn apply::Objects + Sync),
) -> Result<apply::Applied> {
    let path = to.join("recipe");
    let file = File::create_new(&path).at(&path, "making the layer's recipe")?;
    let buffered = io::BufWriter::with_capacity(128 << 10, file);
    let recipe = recipe::Writer::new(buffered).at(&path, "making the layer's recipe")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let layer: OwnedFd = rustix::fs::open(to, flags, Mode::empty()).at(to, "opening the layer")?;
    let applied = apply::apply(tar, layer, options, objects, recipe);
    let (applied, mut recipe) = applied.map_err(|refusal| Error::BadLayer {
        layer: diff_id,
        path: refusal.path,
        why: refusal.why,
    })?;
    recipe.flush().at(&path, "writing the layer's recipe")?;
    Ok(applied)
}

/// The digest of all that comes, and its bytes.
fn digest(from: Receiver<Arc<Vec<u8>>>, pool: &Pool) -> (Digest, u64) {
    let mut hash = Sha256::new();
    let mut size = 0;
    while let Ok(chunk) = from.recv() {
        hash.update(chunk.as_slice());
        size += chunk.len() as u64;
        if let Ok(used) = Arc::try_unwrap(chunk) {
            pool.give(used);
        }
    }
    (Digest::finish(hash), size)
}

fn unpack(job: &Job<'_>, tar: Chunks<'_>) -> Result<apply::Applied> {
    unpack_tar(tar, job.diff_id, job.to, job.options, job.objects)
}

/// A blob as far as it has come, on the disk, for one process at a time.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// None where another process is fetching the same blob.
    fn open(job: &Job<'_>) -> Result<Option<Self>> {
        let path = job.partial.join(job.blob.digest.hex());
        let mut options = File::options();
        let file = options.create(true).read(true).append(true).open(&path);
        let file = file.at(&path, "opening the partial download")?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path, file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).at(&path, "locking the partial download"),
        }
    }

    /// Removes it: it has come whole, or is no good.
    pub fn remove(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).at(&self.path, "removing the downloaded blob")
            }
            _ => Ok(()),
        }
    }
}

/// Reads the blob into `to`, and compares its digest and size. Gives what is to be removed.
fn fetch(job: &Job<'_>, pool: &Pool, to: SyncSender<Arc<Vec<u8>>>) -> Result<Option<Partial>> {
    let size = job.blob.size;
    let mut partial = if job.source.is_local() { None } else { Partial::open(job)? };
    let mut hash = Sha256::new();
    let mut at = 0;
    let mut to = Some(to);
    if let Some(partial) = &partial {
        let file = partial.file.try_clone().at(&partial.path, "reading the partial download")?;
        let mut known = file.take(size);
        loop {
            let mut chunk = pool.take();
            let got = fill(&mut known, &mut chunk).0;
            chunk.truncate(got);
            at += got as u64;
            hash.update(&chunk);
            job.progress.bytes(&job.blob.digest, got as u64);
            if got == 0 {
                break;
            }
            send(&mut to, chunk);
        }
    }
    let mut retries = 0;
    while at < size {
        let begun = at;
        let mut stream = job.source.blob(job.blob, at)?;
        let failed = loop {
            if (job.stopped)() {
                return Err(Error::Stopped);
            }
            let mut chunk = pool.take();
            let (got, error) = fill(&mut stream, &mut chunk);
            chunk.truncate(got);
            at += got as u64;
            if at > size {
                return Err(mismatch(job, format!("more than {size} bytes")));
            }
            hash.update(&chunk);
            if let Some(partial) = &mut partial {
                partial.file.write_all(&chunk).at(&partial.path, "keeping the download")?;
            }
            job.progress.bytes(&job.blob.digest, got as u64);
            if got > 0 {
                send(&mut to, chunk);
            }
            if to.is_none() && size - at > AFTER_A_REFUSAL {
                // Whoever reads has ended, and says why.
                return Ok(partial);
            }
            match error {
                Some(error) => break Some(error),
                None if got < CHUNK => break None,
                None => {}
            }
        };
        match failed {
            Some(error) if at == begun || retries == RETRIES => {
                return Err(Error::Source(Box::new(error)));
            }
            None if at == begun => {
                let why = format!("{} ends after {at} of {size} bytes", job.blob.digest);
                return Err(Error::Source(why.into()));
            }
            _ => retries += 1,
        }
    }
    drop(to);
    let found = Digest::finish(hash);
    if found == job.blob.digest {
        return Ok(partial);
    }
    if let Some(partial) = partial {
        partial.remove()?;
    }
    Err(mismatch(job, found.to_string()))
}

/// Sends a chunk to the stage behind, until that has ended.
fn send(to: &mut Option<SyncSender<Arc<Vec<u8>>>>, chunk: Vec<u8>) {
    if to.as_ref().is_some_and(|behind| behind.send(Arc::new(chunk)).is_err()) {
        *to = None;
    }
}

fn mismatch(job: &Job<'_>, found: String) -> Error {
    Error::Mismatch { what: "blob", expected: job.blob.digest, found }
}

/// Fills `into` as far as the stream goes; less than all only at its end or with an error.
fn fill(from: &mut impl Read, into: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut done = 0;
    while done < into.len() {
        match from.read(&mut into[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (done, Some(e)),
        }
    }
    (done, None)
}

/// Inflates the blob for every stage behind.
fn inflate(
    job: &Job<'_>,
    blob: Chunks<'_>,
    pool: &Pool,
    to: &[SyncSender<Arc<Vec<u8>>>],
) -> Result<()> {
    let bad = |why: String| Error::BadLayer {
        layer: job.diff_id,
        path: PathBuf::new(),
        why: format!("it can't be decompressed: {why}"),
    };
    let mut tar = decoder(blob).map_err(|e| bad(e.to_string()))?;
    let mut total = 0;
    // Headers and padding come on top of what files hold.
    let most = job.options.max_bytes.saturating_add(job.options.max_entries.saturating_mul(2048));
    loop {
        let mut chunk = pool.take();
        let (got, error) = fill(&mut tar, &mut chunk);
        chunk.truncate(got);
        total += got as u64;
        job.writeback.unpacked(got as u64);
        if total > most {
            return Err(bad(format!("it becomes more than {most} bytes")));
        }
        if got > 0 {
            let chunk = Arc::new(chunk);
            for stage in to {
                if stage.send(Arc::clone(&chunk)).is_err() {
                    return Ok(());
                }
            }
        }
        match error {
            Some(error) => return Err(bad(error.to_string())),
            None if got < CHUNK => return Ok(()),
            None => {}
        }
    }
}

/// Decompresses by what the data says that it is; both digests are verified, whatever that is.
///
/// # Errors
/// `Unsupported` for a compression that layers don't have.
pub(crate) fn decoder<'d>(
    mut from: impl BufRead + Send + 'd,
) -> io::Result<Box<dyn Read + Send + 'd>> {
    let head = from.fill_buf()?;
    let is = |magic: &[u8]| head.starts_with(magic);
    if is(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(from)));
    }
    let skippable = head.len() >= 4 && head[1..4] == [0x2a, 0x4d, 0x18] && head[0] & 0xf0 == 0x50;
    if is(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
        return Ok(Box::new(zstd::Decoder::with_buffer(from)?));
    }
    if is(b"BZh") || is(b"\xfd7zXZ") {
        let why = "it is compressed with bzip2 or xz, which no image may be";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    Ok(Box::new(from))
}
