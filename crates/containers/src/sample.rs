//! Images made of this machine's own files: for the demonstration and for tests, without a network.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use store::manifest::{Descriptor, media};
use store::source::Quiet;
use store::{BlobSource, Digest, PullOptions, Store};

use crate::{Error, Result, tree};

/// Copies programs of this machine into the tree `root`, each at its place, with the libraries that they load.
///
/// # Errors
/// [`Error::Io`]: a program is not here, or its loader does not say what it loads.
pub fn programs(names: &[&str], root: &Path) -> Result<()> {
    let mut files = BTreeSet::new();
    for name in names {
        let path = Path::new(name);
        let real = fs::canonicalize(path).map_err(|e| Error::io("find", path, e))?;
        if let Some(loader) = loader(&real).map_err(|e| Error::io("read", &real, e))? {
            let output = Command::new(&loader).arg("--list").arg(&real).output();
            let output = output.map_err(|e| Error::io("ask the loader", &loader, e))?;
            // `libc.so.6 => /lib/libc.so.6 (0x…)`; the loader itself has no arrow.
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let word = line.split_whitespace().find(|word| word.starts_with('/'));
                files.extend(word.map(PathBuf::from));
            }
            files.insert(loader);
        }
        files.insert(path.to_owned());
    }
    for file in files {
        let to = root.join(file.strip_prefix("/").unwrap_or(&file));
        let parent = to.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(|e| Error::io("make", parent, e))?;
        // The content under the name: links of this machine stay here.
        fs::copy(&file, &to).map_err(|e| Error::io("copy", &file, e))?;
    }
    Ok(())
}

/// The program that loads the program at `path`; none for a static one.
///
/// Source: elf(5), `PT_INTERP`.
fn loader(path: &Path) -> io::Result<Option<PathBuf>> {
    let bytes = fs::read(path)?;
    let number = |at: usize, len: usize| -> Option<usize> {
        let field = bytes.get(at..at.checked_add(len)?)?;
        let value = field.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    // 64 bits, least byte first.
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let found = || {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).find_map(|index| {
            let at = table.checked_add(index.checked_mul(size)?)?;
            let (kind, offset, len) = (number(at, 4)?, number(at + 8, 8)?, number(at + 32, 8)?);
            let name = bytes.get(offset..offset.checked_add(len)?).filter(|_| kind == 3)?;
            Some(PathBuf::from(OsStr::from_bytes(name.split(|byte| *byte == 0).next()?)))
        })
    };
    Ok(found())
}

/// Adds to the store an image whose layers are these trees, lowest first; `command` is what it runs.
///
/// # Errors
/// [`Error::Store`], [`Error::Io`].
pub fn add(store: &Store, name: &str, layers: &[PathBuf], command: &[&str]) -> Result<Digest> {
    let mut blobs = Vec::new();
    for path in layers {
        let mut tar = Vec::new();
        store::tar::diff::write(tree::root(path)?, store.namespace(), &mut tar)
            .map_err(|e| Error::io("read", path, e))?;
        blobs.push(tar);
    }
    let diff_ids: Vec<Digest> = blobs.iter().map(|tar| Digest::of(tar)).collect();
    let platform = store::manifest::Platform::this();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": { "Cmd": command, "Env": ["PATH=/usr/bin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| Descriptor {
        media_type: kind.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        platform: None,
        annotations: Default::default(),
    };
    let layers: Vec<_> = blobs.iter().map(|tar| descriptor(media::OCI_LAYER, tar)).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": descriptor(media::OCI_CONFIG, &config),
        "layers": layers,
    });
    blobs.push(config);
    let source = Made { manifest: manifest.to_string().into_bytes(), blobs };
    let name: store::Reference = name.parse()?;
    Ok(store.pull(&source, Some(&name.to_string()), &Quiet, &PullOptions::default())?)
}

struct Made {
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl BlobSource for Made {
    fn manifest(&self) -> std::result::Result<(Vec<u8>, String), Failure> {
        Ok((self.manifest.clone(), media::OCI_MANIFEST.to_owned()))
    }

    fn blob(
        &self,
        blob: &Descriptor,
        from: u64,
    ) -> std::result::Result<Box<dyn Read + Send>, Failure> {
        let bytes = self.blobs.iter().find(|bytes| Digest::of(bytes) == blob.digest);
        let mut bytes = Cursor::new(bytes.cloned().ok_or("no such blob")?);
        bytes.set_position(from);
        Ok(Box::new(bytes))
    }
}
