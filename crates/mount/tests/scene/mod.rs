//! A union of a lower and an upper layer, mounted as long as it lives; a hash of the lower layer holds it to its promise.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// A mount in a directory of its own.
pub struct Scene {
    dir: tempfile::TempDir,
    server: Option<JoinHandle<()>>,
    before: BTreeMap<PathBuf, String>,
    extra: String,
}

impl Scene {
    /// `fill` makes the lower layer. `None` where there is no FUSE.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn new(fill: impl FnOnce(&Path)) -> Option<Self> {
        Self::with("", fill)
    }

    /// As [`Scene::new`], with more options.
    pub fn with(extra: &str, fill: impl FnOnce(&Path)) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "no FUSE");
            println!("SKIPPED: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fill(&dir.path().join("lower"));
        let before = tree(&dir.path().join("lower"));
        let mut scene = Self { dir, server: None, before, extra: extra.to_owned() };
        scene.mount();
        Some(scene)
    }

    fn mount(&mut self) {
        let at = |name: &str| self.dir.path().join(name).display().to_string();
        let mut string = format!("lowerdir={},{}", at("lower"), self.extra);
        if self.extra != "ro" {
            string += &format!(",upperdir={},workdir={}", at("upper"), at("work"));
        }
        let options = mount::Options::parse(&[string]).unwrap().options;
        let mounted = mount::mount(&options, &self.dir.path().join("merged")).unwrap();
        println!("over io_uring: {}", mounted.over_uring());
        self.server = Some(std::thread::spawn(move || mounted.serve().unwrap()));
    }

    fn unmount(&mut self) {
        fuse::mount::unmount(&self.dir.path().join("merged"), true).unwrap();
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
        assert_eq!(tree(&self.dir.path().join("lower")), self.before, "the lower layer changed");
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub fn remount_with(&mut self, between: impl FnOnce()) {
        between();
        self.remount();
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Does something while nothing is mounted.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn unmounted(&mut self, act: impl FnOnce(&Self)) {
        self.unmount();
        act(self);
        self.mount();
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("merged").join(name)
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub fn upper(&self, name: &str) -> PathBuf {
        self.dir.path().join("upper").join(name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.server.is_some() && !std::thread::panicking() {
            self.unmount();
        } else if let Err(error) = fuse::mount::unmount(&self.dir.path().join("merged"), true) {
            println!("cannot unmount: {error}");
        }
    }
}

/// Everything under `root` but times of access.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut text = format!(
            "{:o} {} {} {} {}.{}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec()
        );
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.is_file() {
            let data = fs::read(&path).unwrap();
            let sum = data.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31) ^ u64::from(*byte));
            text += &format!(" {sum:x}");
        }
        found.insert(path, text);
    }
    found
}
