//! A file system of one file, mounted: the session itself, over whichever transport the kernel has.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuse::mount::MountConfig;
use fuse::wire::{
    Attr, AttrOut, EntryOut, GetattrIn, OpenIn, OpenOut, Plain, ReadIn, SetattrIn, WriteIn, fopen,
};
use fuse::{DirSink, Errno, FileSystem, Request, Result, Session, SessionConfig};

/// A root directory (node 1) with one file (node 2) of zeros but for what was written.
struct OneFile {
    data: std::sync::Mutex<Vec<u8>>,
}

impl OneFile {
    fn attr(&self, node: u64) -> Attr {
        let dir = node == 1;
        Attr {
            ino: node,
            size: if dir { 0 } else { self.data.lock().unwrap().len() as u64 },
            mode: if dir { 0o040_755 } else { 0o100_644 },
            nlink: 1,
            ..Attr::zero()
        }
    }
}

impl FileSystem for OneFile {
    fn lookup(&self, _: &Request, name: &OsStr) -> Result<EntryOut> {
        match name.as_encoded_bytes() {
            b"file" => Ok(EntryOut { nodeid: 2, attr: self.attr(2), ..EntryOut::zero() }),
            // A request that takes its time must not hold back the others.
            b"slow" => {
                std::thread::sleep(Duration::from_secs(3));
                Err(Errno(libc::ENOENT))
            }
            b"odd" => Err(Errno(70_000)),
            _ => Err(Errno(libc::ENOENT)),
        }
    }
    fn getattr(&self, request: &Request, _: &GetattrIn) -> Result<AttrOut> {
        Ok(AttrOut { attr: self.attr(request.node), ..AttrOut::zero() })
    }
    fn setattr(&self, request: &Request, input: &SetattrIn) -> Result<AttrOut> {
        self.data.lock().unwrap().resize(input.size as usize, 0);
        Ok(AttrOut { attr: self.attr(request.node), ..AttrOut::zero() })
    }
    fn open(&self, _: &Request, _: &OpenIn) -> Result<OpenOut> {
        Ok(OpenOut { fh: 5, open_flags: fopen::DIRECT_IO, backing_id: 0 })
    }
    fn opendir(&self, _: &Request, _: &OpenIn) -> Result<OpenOut> {
        Ok(OpenOut::zero())
    }
    fn read(&self, _: &Request, input: &ReadIn, buffer: &mut [u8]) -> Result<usize> {
        let data = self.data.lock().unwrap();
        let rest = data.get(input.offset as usize..).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
    fn write(&self, _: &Request, input: &WriteIn, bytes: &[u8]) -> Result<usize> {
        let mut data = self.data.lock().unwrap();
        let end = input.offset as usize + bytes.len();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[input.offset as usize..end].copy_from_slice(bytes);
        Ok(bytes.len())
    }
    fn readdir(&self, _: &Request, _: u64, offset: u64, sink: &mut DirSink) -> Result<()> {
        for number in offset..5000 {
            let name = format!("entry-{number:05}");
            if !sink.push(OsStr::new(&name), number + 10, 8, number + 1, None) {
                break;
            }
        }
        Ok(())
    }
}

struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = fuse::mount::unmount(self.0.path(), true) {
            println!("cannot unmount: {error}");
        }
    }
}

/// Runs `test` on a mount; nothing, with a word, where FUSE can't be mounted.
fn mounted(uring: bool, test: impl FnOnce(&Path)) {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "no FUSE");
        println!("SKIPPED: needs root and /dev/fuse");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = MountConfig {
        source: "test".to_owned(),
        subtype: "test".to_owned(),
        flags: 0,
        default_permissions: true,
        allow_other: false,
        security: Vec::new(),
    };
    let device = fuse::mount::mount(dir.path(), &config).unwrap();
    let mounted = Mounted(dir);
    let fs = Arc::new(OneFile { data: std::sync::Mutex::default() });
    let config = SessionConfig { uring, ..SessionConfig::default() };
    let session = Session::start(device, fs, &config).unwrap();
    let server = std::thread::spawn(move || session.serve());
    test(mounted.0.path());
    drop(mounted);
    server.join().unwrap().unwrap();
}

fn both(test: impl Fn(&Path)) {
    mounted(false, &test);
    if fuse::uring_enabled() {
        mounted(true, &test);
    } else {
        println!("SKIPPED: over io_uring, which is not enabled");
    }
}

#[test]
fn requests_of_every_size_arrive_whole() {
    both(|dir| {
        let file = fs::OpenOptions::new().read(true).write(true).open(dir.join("file")).unwrap();
        for size in
            [1, 100, 4095, 4096, 4097, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000]
        {
            let data: Vec<u8> = (0..size).map(|i: u32| (i % 251) as u8).collect();
            file.write_all_at(&data, 7).unwrap();
            let mut read = vec![0; data.len()];
            file.read_exact_at(&mut read, 7).unwrap();
            assert!(read == data, "{size}");
        }
        assert_eq!(file.metadata().unwrap().len(), 5_000_007);
    });
}

#[test]
fn a_listing_goes_over_many_answers() {
    both(|dir| {
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!((names.len(), names[4999].to_str()), (5000, Some("entry-04999")));
    });
}

#[test]
fn errors_are_errors_and_what_is_unknown_is_not_asked_again() {
    both(|dir| {
        let code = |name: &str| fs::metadata(dir.join(name)).unwrap_err().raw_os_error();
        assert_eq!((code("none"), code("odd")), (Some(libc::ENOENT), Some(libc::EIO)));
        assert!(fs::create_dir(dir.join("dir")).is_err());
        assert!(fs::remove_file(dir.join("file")).is_err());
    });
}

#[test]
fn a_slow_request_holds_back_no_other() {
    both(|dir| {
        let slow = dir.join("slow");
        let asked = std::thread::spawn(move || slow.exists());
        std::thread::sleep(Duration::from_millis(50));
        let begun = Instant::now();
        for _ in 0..100 {
            assert!(dir.join("file").exists());
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(!asked.join().unwrap());
    });
}
