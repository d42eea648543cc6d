//! A big file of a lower layer is changed without being copied: it must be what a plain file would be, after every
//! operation, opened anew at any moment as after a crash of the process, and while it is completed behind the scenes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use layer::Namespace;
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use union::{Config, Limits, NodeId, SetAttr, Union};

/// Bytes of the lower file; not in whole chunks.
const SIZE: u64 = (5 << 20) + 1234;

struct Scene {
    temp: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["lower", "upper", "work"] {
            fs::create_dir(temp.path().join(dir)).unwrap();
        }
        let scene = Self { temp };
        let file = File::create_new(scene.at("lower/big")).unwrap();
        for at in (0..SIZE).step_by(512) {
            let sector = [(at / 512 * 7) as u8 | 1; 512];
            file.write_all_at(&sector[..512.min(SIZE - at) as usize], at).unwrap();
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, 1 << 20, 1 << 20).unwrap();
        fs::copy(scene.at("lower/big"), scene.at("model")).unwrap();
        scene
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn open(&self) -> Union {
        self.open_as(true).unwrap()
    }

    fn open_as(&self, partial: bool) -> union::Result<Union> {
        Union::open(&Config {
            lowers: vec![self.at("lower")],
            upper: Some((self.at("upper"), self.at("work"))),
            namespace: Namespace::User,
            volatile: true,
            limits: Limits::default(),
            index: true,
            partial,
        })
    }

    fn is_marked(&self) -> bool {
        self.at("work/work/incompat").exists()
    }
}

/// What is done to the union's file and to the model's.
#[derive(Debug, Clone)]
enum Op {
    Write(u64, usize, u8),
    Truncate(u64),
    Fallocate(u32, u64, u64),
    Copy(u64, u64, usize),
    Chmod(u32),
    Sync,
    /// Completes a little.
    Idle,
    /// As if the process had been killed.
    Reopen,
    /// Another name, or the first one again.
    Rename,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..SIZE + 100_000,
        (0..SIZE / 4096 + 3).prop_map(|chunk| chunk * 4096),
        SIZE - 5000..SIZE + 5000,
        0..20_000_u64,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let modes = [
        FallocateFlags::empty(),
        FallocateFlags::KEEP_SIZE,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    ];
    let modes: Vec<u32> = modes.iter().map(|mode| mode.bits()).collect();
    prop_oneof![
        8 => (offset(), 1..20_000_usize, any::<u8>()).prop_map(|(at, len, byte)| Op::Write(at, len, byte)),
        2 => offset().prop_map(Op::Truncate),
        3 => (prop::sample::select(modes), offset(), 1..30_000_u64)
            .prop_map(|(mode, at, len)| Op::Fallocate(mode, at, len)),
        1 => (0..1000_u64, 1..8_u64).prop_map(|(at, len)| Op::Fallocate(
            FallocateFlags::COLLAPSE_RANGE.bits(), at * 4096, len * 4096)),
        2 => (offset(), offset(), 1..40_000_usize).prop_map(|(from, to, len)| Op::Copy(from, to, len)),
        1 => (0o400..0o777_u32).prop_map(Op::Chmod),
        1 => Just(Op::Sync),
        2 => Just(Op::Idle),
        2 => Just(Op::Reopen),
        1 => Just(Op::Rename),
    ]
}

struct Run {
    scene: Scene,
    union: Union,
    model: File,
    name: &'static str,
    seen: Vec<(u64, u64)>,
}

impl Run {
    fn node(&self) -> NodeId {
        self.union.lookup(NodeId::ROOT, OsStr::new(self.name)).unwrap().node
    }

    fn apply(&mut self, op: &Op) {
        let node = self.node();
        let open = || self.union.open_file(node, OFlags::RDWR).unwrap();
        match op {
            Op::Write(at, len, byte) => {
                let data: Vec<u8> = (0..*len).map(|i| byte ^ i as u8).collect();
                let file = open();
                assert_eq!(self.union.write(&file, &data, *at, false).unwrap(), *len);
                self.union.close(&file);
                self.model.write_all_at(&data, *at).unwrap();
            }
            Op::Truncate(size) => {
                let change = SetAttr { size: Some(*size), ..SetAttr::default() };
                self.union.setattr(node, &change).unwrap();
                self.model.set_len(*size).unwrap();
            }
            Op::Fallocate(mode, at, len) => {
                let mode = FallocateFlags::from_bits_retain(*mode);
                let file = open();
                let done =
                    self.union.fallocate(&file, mode, (*at, *len), false).map_err(|e| e.errno());
                self.union.close(&file);
                assert_eq!(done, fallocate(&self.model, mode, *at, *len), "{op:?}");
            }
            Op::Copy(from, to, len) => {
                let (source, target) = (open(), open());
                let size = self.model.metadata().unwrap().len();
                let apart = from + *len as u64 <= *to || to + *len as u64 <= *from;
                if apart && *from < size {
                    let copied = self
                        .union
                        .copy_range((&source, *from), (&target, *to), *len, false)
                        .unwrap();
                    let mut data = vec![0; copied];
                    self.model.read_exact_at(&mut data, *from).unwrap();
                    self.model.write_all_at(&data, *to).unwrap();
                }
                self.union.close(&source);
                self.union.close(&target);
            }
            Op::Chmod(mode) => {
                let change = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                assert_eq!(self.union.setattr(node, &change).unwrap().mode & 0o777, *mode);
            }
            Op::Sync => {
                let file = open();
                self.union.fsync(&file, true).unwrap();
                self.union.close(&file);
            }
            Op::Idle => {
                for _ in 0..3 {
                    self.union.complete_idle(&mut self.seen).unwrap();
                }
            }
            Op::Reopen => {
                self.union.forget(node, 1);
                self.reopen();
                return;
            }
            Op::Rename => {
                let to = if self.name == "big" { "other" } else { "big" };
                let (from, into) = (OsStr::new(self.name), OsStr::new(to));
                let flags = rustix::fs::RenameFlags::NOREPLACE;
                self.union.rename((NodeId::ROOT, from), (NodeId::ROOT, into), flags).unwrap();
                self.name = to;
            }
        }
        self.union.forget(node, 1);
    }

    fn reopen(&mut self) {
        // The lock must be free before the next one asks for it.
        let nowhere = tempfile::tempdir().unwrap();
        let idle = Union::open(&Config {
            lowers: vec![nowhere.path().to_owned()],
            upper: None,
            namespace: Namespace::User,
            volatile: true,
            limits: Limits::default(),
            index: true,
            partial: true,
        });
        drop(std::mem::replace(&mut self.union, idle.unwrap()));
        self.union = self.scene.open();
        self.seen.clear();
    }

    fn compare(&self) {
        let node = self.node();
        let file = self.union.open_file(node, OFlags::RDONLY).unwrap();
        let size = self.model.metadata().unwrap().len();
        assert_eq!(self.union.getattr(node).unwrap().size, size);
        let mut shown = vec![0; size as usize + 10];
        let got = self.union.read(&file, &mut shown, 0).unwrap();
        shown.truncate(got);
        same(&shown, &fs::read(self.scene.at("model")).unwrap());
        // No data may be where a hole is told.
        let mut at = 0;
        while let Ok(hole) = self.union.seek(&file, SeekFrom::Hole(at)) {
            let end = self.union.seek(&file, SeekFrom::Data(hole)).unwrap_or(size);
            assert!(hole >= at && end >= hole && end <= size);
            let zeros = vec![0; (end - hole) as usize];
            assert!(shown[hole as usize..end as usize] == zeros, "data in a hole at {hole}");
            if end == size {
                break;
            }
            at = end;
        }
        self.union.close(&file);
        self.union.forget(node, 1);
    }
}

/// As `assert_eq`, saying where rather than what.
fn same(a: &[u8], b: &[u8]) {
    if a == b {
        return;
    }
    assert_eq!(a.len(), b.len());
    let differs = a.iter().zip(b).position(|(a, b)| a != b);
    assert_eq!(
        differs,
        None,
        "the first byte that differs; chunk {:?}",
        differs.map(|at| at / 4096)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_partial_file_is_what_a_plain_one_would_be(ops in prop::collection::vec(op(), 1..40)) {
        let scene = Scene::new();
        let lower = fs::read(scene.at("lower/big")).unwrap();
        let model = File::options().read(true).write(true).open(scene.at("model")).unwrap();
        let mut run = Run { union: scene.open(), scene, model, name: "big", seen: Vec::new() };
        for op in &ops {
            run.apply(op);
            run.compare();
        }
        run.union.complete().unwrap();
        run.compare();
        prop_assert!(!run.scene.is_marked());
        let upper = run.scene.at("upper").join(run.name);
        if upper.exists() {
            same(&fs::read(upper).unwrap(), &fs::read(run.scene.at("model")).unwrap());
        }
        same(&fs::read(run.scene.at("lower/big")).unwrap(), &lower);
    }
}

fn write(union: &Union, name: &str, data: &[u8], at: u64) {
    let node = union.lookup(NodeId::ROOT, OsStr::new(name)).unwrap().node;
    let file = union.open_file(node, OFlags::RDWR).unwrap();
    assert_eq!(union.write(&file, data, at, false).unwrap(), data.len());
    union.close(&file);
    union.forget(node, 1);
}

#[test]
fn a_write_takes_as_much_room_as_it_has_bytes() {
    let scene = Scene::new();
    let union = scene.open();
    write(&union, "big", &[1; 4096], 3 << 20);
    assert!(fs::metadata(scene.at("upper/big")).unwrap().blocks() * 512 <= 64 << 10);
    assert!(scene.is_marked(), "a kernel must not mount it");
    let entry = union.lookup(NodeId::ROOT, OsStr::new("big")).unwrap();
    let hole = 1 << 20;
    assert!(entry.attr.blocks * 512 >= SIZE - hole, "what is below counts");
    union.complete_file(entry.node).unwrap();
    assert_eq!(union.incomplete(), 0);
}

#[test]
fn what_is_removed_leaves_nothing() {
    let scene = Scene::new();
    let union = scene.open();
    write(&union, "big", b"x", 0);
    union.unlink(NodeId::ROOT, OsStr::new("big")).unwrap();
    assert_eq!(fs::read_dir(scene.at("work/work/incompat/partial")).unwrap().count(), 0);
    union.complete().unwrap();
    assert!(!scene.is_marked());
}

#[test]
fn a_file_that_nobody_looks_at_is_completed_too() {
    let scene = Scene::new();
    let union = scene.open();
    fs::create_dir(scene.at("upper/dir")).unwrap();
    write(&union, "big", b"new", 10);
    let (from, to) = ((NodeId::ROOT, OsStr::new("big")), OsStr::new("moved"));
    let dir = union.lookup(NodeId::ROOT, OsStr::new("dir")).unwrap().node;
    union.rename(from, (dir, to), rustix::fs::RenameFlags::empty()).unwrap();
    drop(union);
    // Where none is wanted, the union begins with completing what there is.
    drop(scene.open_as(false).unwrap());
    assert!(!scene.is_marked());
    let mut expected = fs::read(scene.at("model")).unwrap();
    expected[10..13].copy_from_slice(b"new");
    same(&fs::read(scene.at("upper/dir/moved")).unwrap(), &expected);
    let data = seek(File::open(scene.at("upper/dir/moved")).unwrap(), SeekFrom::Hole(0)).unwrap();
    assert_eq!(data, 1 << 20, "a hole below stays one");
}

#[test]
fn as_a_lower_layer_it_is_refused_until_it_is_whole() {
    let scene = Scene::new();
    write(&scene.open(), "big", b"x", 0);
    let above = |scene: &Scene| {
        Union::open(&Config {
            lowers: vec![scene.at("upper"), scene.at("lower")],
            upper: None,
            namespace: Namespace::User,
            volatile: true,
            limits: Limits::default(),
            index: true,
            partial: true,
        })
        .unwrap()
        .lookup(NodeId::ROOT, OsStr::new("big"))
        .map(|entry| entry.attr.size)
        .map_err(|e| e.errno())
    };
    assert_eq!(above(&scene), Err(rustix::io::Errno::UCLEAN));
    scene.open().complete().unwrap();
    assert_eq!(above(&scene), Ok(SIZE));
}

#[test]
fn another_lower_file_under_the_same_path_is_refused() {
    let scene = Scene::new();
    write(&scene.open(), "big", b"x", 0);
    let other = scene.at("lower/big");
    fs::remove_file(&other).unwrap();
    fs::write(&other, vec![9; SIZE as usize]).unwrap();
    let union = scene.open();
    let refused = union.lookup(NodeId::ROOT, OsStr::new("big")).map_err(|e| e.errno());
    assert_eq!(refused.err(), Some(rustix::io::Errno::UCLEAN));
    assert!(union.complete().is_err(), "and nothing is taken for whole");
    assert!(Path::new(&scene.at("work/work/incompat/partial")).exists());
}
