//! Images for tests: tars made by hand, and OCI layouts of them.

#![allow(dead_code, reason = "not every test needs everything")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use store::Digest;

/// One entry of a tar, with all that can be wrong about it.
#[derive(Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: u8,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub mode: u32,
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
    pub device: (u32, u32),
    /// The length that the header says, where it is not the data's.
    pub size: Option<u64>,
}

fn entry(path: &str, kind: u8) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        link: Vec::new(),
        data: Vec::new(),
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        pax: Vec::new(),
        device: (0, 0),
        size: None,
    }
}

pub fn file(path: &str, data: &str) -> Entry {
    Entry { data: data.as_bytes().to_vec(), ..entry(path, b'0') }
}

pub fn dir(path: &str) -> Entry {
    entry(path, b'5')
}

pub fn symlink(path: &str, to: &str) -> Entry {
    Entry { link: to.as_bytes().to_vec(), ..entry(path, b'2') }
}

pub fn hard_link(path: &str, to: &str) -> Entry {
    Entry { link: to.as_bytes().to_vec(), ..entry(path, b'1') }
}

pub fn special(path: &str, kind: u8, device: (u32, u32)) -> Entry {
    Entry { device, ..entry(path, kind) }
}

fn header(entry: &Entry, size: u64) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let name = &entry.path[..entry.path.len().min(100)];
    block[..name.len()].copy_from_slice(name);
    let mut put = |at: usize, digits: usize, value: u64| {
        block[at..at + digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
    };
    put(100, 7, entry.mode.into());
    put(108, 7, 0);
    put(116, 7, 0);
    put(124, 11, size);
    put(136, 11, 1_000_000_000);
    put(329, 7, entry.device.0.into());
    put(337, 7, entry.device.1.into());
    block[156] = entry.kind;
    let link = &entry.link[..entry.link.len().min(100)];
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    padded
}

/// A tar of these entries.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        let mut records = Vec::new();
        for (key, value) in &entry.pax {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            length = rest + length.to_string().len();
            records.extend(format!("{length} ").bytes());
            records.extend(key);
            records.push(b'=');
            records.extend(value);
            records.push(b'\n');
        }
        if !records.is_empty() {
            let pax = Entry { path: b"pax".to_vec(), kind: b'x', ..file("", "") };
            tar.extend(header(&pax, records.len() as u64));
            tar.extend(padded(&records));
        }
        tar.extend(header(entry, entry.size.unwrap_or(entry.data.len() as u64)));
        tar.extend(padded(&entry.data));
    }
    tar.extend([0; 1024]);
    tar
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An OCI layout in a directory, to which images are added.
pub struct Layout {
    pub dir: PathBuf,
    manifests: Vec<serde_json::Value>,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_owned(), manifests: Vec::new() }
    }

    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        fs::write(self.path(&digest), bytes).unwrap();
        digest
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// An image of tars, gzipped; gives the digest of its manifest.
    pub fn image(&mut self, tag: &str, tars: &[Vec<u8>]) -> Digest {
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
        self.image_with(tag, tars, &diff_ids)
    }

    /// The same with diff IDs that may lie.
    pub fn image_with(&mut self, tag: &str, tars: &[Vec<u8>], diff_ids: &[Digest]) -> Digest {
        let layers: Vec<_> = tars
            .iter()
            .map(|tar| {
                let blob = gzip(tar);
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": self.blob(&blob), "size": blob.len()
                })
            })
            .collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/true"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids }
        });
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(&config), "size": config.len()
            },
            "layers": layers
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = self.blob(&manifest);
        self.manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
            "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag }
        }));
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        digest
    }
}

/// Everything beneath `root`, a line a path.
pub fn tree(root: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let content = if meta.is_file() {
            format!("{:?}", Digest::of(&fs::read(&path).unwrap()))
        } else {
            String::new()
        };
        let time = if meta.is_dir() { 0 } else { meta.mtime() };
        lines.push(format!(
            "{name} {:o} {} {time} {} {content}",
            meta.mode(),
            meta.nlink(),
            meta.rdev()
        ));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    lines.sort();
    lines
}
