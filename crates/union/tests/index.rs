//! An upper layer that Linux's overlayfs has written with `index=on`: never the old file under a name of the new one.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use layer::Namespace;
use union::{Config, Error, Limits, Union};

struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { temp: tempfile::tempdir().unwrap() };
        for dir in ["lower", "upper", "work", "merged"] {
            fs::create_dir(scene.at(dir)).unwrap();
        }
        for name in ["one", "single"] {
            fs::write(scene.at("lower").join(name), "old").unwrap();
        }
        fs::hard_link(scene.at("lower/one"), scene.at("lower/two")).unwrap();
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Whether the kernel let `change` change it.
    fn by_kernel(&self, change: impl FnOnce()) -> bool {
        let at = |name: &str| self.at(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},index=on",
            at("lower"),
            at("upper"),
            at("work")
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(self.at("merged"));
        // A mount namespace that another test has made meanwhile keeps its copy of the last mount busy until it ends.
        let mut tries = 0;
        let why = loop {
            let out = mount.output().unwrap();
            let why = String::from_utf8_lossy(&out.stderr).into_owned();
            if out.status.success() || !why.contains("busy") || tries == 400 {
                break (!out.status.success()).then_some(why);
            }
            tries += 1;
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        if let Some(why) = why {
            assert!(std::env::var_os("STRATA_REQUIRE").is_none_or(|v| v != "all"), "{why}");
            println!("SKIPPED: overlayfs with index=on can't be mounted: {why}");
            return false;
        }
        change();
        assert!(Command::new("umount").arg(self.at("merged")).status().unwrap().success());
        true
    }

    fn union(&self) -> union::Result<Union> {
        Union::open(&Config {
            lowers: vec![self.at("lower")],
            upper: Some((self.at("upper"), self.at("work"))),
            namespace: Namespace::Trusted,
            volatile: false,
            limits: Limits::default(),
            partial: false,
        })
    }
}

#[test]
fn names_that_the_upper_layer_has_not_refuse_the_mount() {
    let scene = Scene::new();
    let append = |name: &str| {
        let file = fs::OpenOptions::new().append(true).open(scene.at("merged").join(name));
        file.unwrap().write_all(b"new").unwrap();
    };
    if !scene.by_kernel(|| append("single")) {
        return;
    }
    assert!(scene.at("work/index").is_dir());
    drop(scene.union().expect("nothing is in the index"));
    assert!(scene.by_kernel(|| append("one")));
    let refused = scene.union();
    assert!(matches!(refused, Err(Error::KernelIndex { .. })), "{refused:?}");
    assert!(scene.by_kernel(|| {
        let shown = fs::read_to_string(scene.at("merged/two")).unwrap();
        assert_eq!(shown, "oldnew", "what the refusal is about");
        fs::remove_file(scene.at("merged/two")).unwrap();
    }));
    drop(scene.union().expect("every name that is left is in the upper layer"));
}
