//! Unpacks a layer into an empty directory, in the union's form.
//!
//! Everything goes through descriptors beneath the directory: no name of the archive is ever
//! resolved by the process's own root, and no symlink leads out. The archive decides nothing about
//! files that it did not make. What later entries take the place of is kept beside the tree, for
//! the recipe.
//!
//! Source: OCI image specification, "Applying Changesets", "Whiteouts".

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::sync_channel;
use std::thread;

use layer::{Namespace, mark};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags, fsetxattr, futimens,
    linkat, mkdirat, mknodat, openat, openat2, readlinkat, renameat_with, statat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;

use crate::objects::Content;
use crate::tar::behind::{self, Behind};
use crate::tar::content::{self, Files, New};
use crate::tar::finish::{Finish, times};
use crate::tar::read::{Entry, Kind, Reader};
use crate::tar::recipe;

/// How a layer is unpacked, and how much of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where opaque marks go.
    pub namespace: Namespace,
    /// Whether owners are set: not so where this process can't.
    pub owners: bool,
    /// Entries at most.
    pub max_entries: u64,
    /// Bytes of data at most, holes not among them.
    pub max_bytes: u64,
    /// Whether the file system shares extents, so that equal files are kept once.
    pub share: bool,
}

/// Files that are there already, by their content.
pub trait Objects {
    /// A file with this content, open for reading.
    fn find(&self, content: &Content, size: u64) -> Option<OwnedFd>;
}

/// What was unpacked.
#[derive(Debug, Default)]
pub struct Applied {
    /// Names, directories among them.
    pub entries: u64,
    /// Bytes of data.
    pub bytes: u64,
    /// Bytes of data that other files had already.
    pub shared: u64,
    /// Content of files, for [`Objects`].
    pub objects: Vec<(Content, PathBuf)>,
}

/// An entry that can't be unpacked.
#[derive(Debug)]
pub struct Refusal {
    /// The entry.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

pub(crate) type Done<T> = std::result::Result<T, String>;

/// Unpacks `archive` into `fs` of the layer's directory behind `layer`, and writes its recipe.
///
/// # Errors
/// [`Refusal`]; what was unpacked until then is the caller's to remove.
pub fn apply<W: Write>(
    archive: impl BufRead,
    layer: OwnedFd,
    options: &Options,
    objects: &(dyn Objects + Sync),
    recipe: recipe::Writer<W>,
) -> std::result::Result<(Applied, W), Refusal> {
    let finish = Finish::new(options.owners);
    let refuse = |why| Refusal { path: PathBuf::new(), why };
    let root = root(&layer, &finish).map_err(refuse)?;
    let files = Files::new(&root.fd, options.share, objects, &finish);
    let progress = behind::Progress::default();
    let (to, from) = sync_channel(behind::QUEUE);
    let (unpacked, filled) = thread::scope(|scope| {
        let filling = scope.spawn(|| behind::run(&files, from, &progress));
        let at = Apply {
            layer,
            root: Rc::clone(&root),
            dirs: HashMap::new(),
            last: Vec::new(),
            records: HashMap::new(),
            moved: Vec::new(),
            replaced: 0,
            finish: &finish,
            options,
            files: &files,
            behind: Behind::new(to, &progress),
            done: Applied::default(),
        };
        let unpacked = unpack(archive, at, recipe);
        (unpacked, filling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // The one says what the other only knows to have ended.
    filled?;
    let (mut done, recipe) = unpacked?;
    (done.shared, done.objects) = files.end();
    Ok((done, recipe))
}

fn unpack<W: Write>(
    archive: impl BufRead,
    mut at: Apply<'_>,
    mut recipe: recipe::Writer<W>,
) -> std::result::Result<(Applied, W), Refusal> {
    let mut reader = Reader::new(archive);
    let mut path = PathBuf::new();
    let refuse = |path: &Path| {
        let path = path.to_owned();
        move |why: String| Refusal { path, why }
    };
    loop {
        let next = reader.next_entry().map_err(|e| e.to_string()).map_err(refuse(&path))?;
        recipe.raw(&reader.take_raw()).map_err(|e| e.to_string()).map_err(refuse(&path))?;
        let Some(entry) = next else { break };
        path = PathBuf::from(OsString::from_vec(entry.path.clone()));
        at.entry(entry, &mut reader, &mut recipe).map_err(refuse(&path))?;
    }
    path = PathBuf::new();
    reader.finish().map_err(|e| e.to_string()).map_err(refuse(&path))?;
    recipe.raw(&reader.take_raw()).map_err(|e| e.to_string()).map_err(refuse(&path))?;
    at.finish().map_err(refuse(&path))?;
    let recipe =
        recipe.finish(&at.moved).map_err(|e| format!("its recipe: {e}")).map_err(refuse(&path))?;
    Ok((at.done, recipe))
}

fn root(layer: &OwnedFd, finish: &Finish) -> Done<Rc<Dir>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(layer, "fs", flags, Mode::empty()).map_err(step("opening its root"))?;
    finish.default_dir(&fd).map_err(step("the mode of its root"))?;
    Ok(Rc::new(Dir { fd, path: PathBuf::new(), plain: true }))
}

/// A directory of the tree.
#[derive(Debug)]
pub(crate) struct Dir {
    pub fd: OwnedFd,
    /// Its path without symlinks.
    pub path: PathBuf,
    /// Whether what is made in it is as it was asked for: no set-group-ID that is inherited.
    pub plain: bool,
}

/// What a directory gets when all is made: its time, and what its entries are to inherit.
struct Last {
    path: PathBuf,
    mtime: (i64, u32),
    inherited: Option<Vec<u8>>,
}

struct Apply<'o> {
    layer: OwnedFd,
    root: Rc<Dir>,
    /// Directories that are open, by the path that leads there.
    dirs: HashMap<PathBuf, Rc<Dir>>,
    /// Directories get their times, and what new names in them would inherit, when all is made.
    last: Vec<Last>,
    /// The first record of a file's data in the recipe, and how many there are.
    records: HashMap<PathBuf, (u64, u64)>,
    moved: Vec<(u64, PathBuf)>,
    replaced: u64,
    finish: &'o Finish,
    options: &'o Options,
    files: &'o Files<'o>,
    behind: Behind<'o>,
    done: Applied,
}

/// Directories that stay open: three layers are unpacked at once, and 1,024 descriptors are usual.
const OPEN_DIRS: usize = 128;
/// Symlinks on the way to one directory at most, as in the kernel.
const MAX_SYMLINKS: usize = 40;
/// Entries that a layer may replace of its own; each costs a look at all the others.
const MAX_REPLACED: u64 = 10_000;

/// The path without `.` and leading slashes. One that goes up is refused.
pub(crate) fn clean(path: &[u8]) -> Done<PathBuf> {
    let mut cleaned = PathBuf::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("its path goes up".to_owned()),
            name if name.len() > 255 => {
                return Err("a name in its path is longer than 255 bytes".to_owned());
            }
            name => cleaned.push(OsStr::from_bytes(name)),
        }
    }
    Ok(cleaned)
}

/// Where a symlink in `dir` leads, as seen from the layer's root.
pub(crate) fn target(dir: &Path, link: &[u8]) -> PathBuf {
    let mut path = if link.starts_with(b"/") { PathBuf::new() } else { dir.to_owned() };
    for name in link.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                path.pop();
            }
            name => path.push(OsStr::from_bytes(name)),
        }
    }
    path
}

pub(crate) fn step(name: &'static str) -> impl Fn(Errno) -> String {
    move |e| format!("{name}: {e}")
}

impl Apply<'_> {
    fn entry<R: BufRead, W: Write>(
        &mut self,
        entry: Entry,
        reader: &mut Reader<R>,
        recipe: &mut recipe::Writer<W>,
    ) -> Done<()> {
        self.done.entries += 1;
        if self.done.entries > self.options.max_entries {
            return Err(format!("the layer has more than {} entries", self.options.max_entries));
        }
        self.done.bytes = self.done.bytes.saturating_add(entry.stored);
        if self.done.bytes > self.options.max_bytes {
            return Err(format!("the layer has more than {} bytes", self.options.max_bytes));
        }
        let path = clean(&entry.path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return match entry.kind {
                Kind::Dir => self.top(&entry),
                _ => Err("the root of a layer is a directory".to_owned()),
            };
        };
        let dir = self.dir(parent, 0)?;
        if name.as_bytes().starts_with(b".wh.") {
            // The data of a whiteout, should it have any, is in no file.
            content::keep(reader, recipe)?;
            return self.whiteout(&dir, name);
        }
        match entry.kind {
            Kind::Dir => self.directory(&dir, name, &entry),
            Kind::File => self.file(&dir, name, entry, reader, recipe),
            Kind::HardLink => self.hard_link(&dir, name, &entry),
            Kind::Symlink => {
                let link = OsStr::from_bytes(&entry.link);
                self.make(&dir, name, || symlinkat(link, &dir.fd, name))
                    .map_err(|e| format!("making a symlink: {e}"))?;
                self.finish.special(&dir, name, &entry)
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::Char => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                if kind == FileType::CharacterDevice && entry.device == (0, 0) {
                    return Err("the device 0:0 is the union's whiteout".to_owned());
                }
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                let mode = Mode::RUSR | Mode::WUSR;
                self.make(&dir, name, || mknodat(&dir.fd, name, kind, mode, device))
                    .map_err(|e| format!("making a device or FIFO: {e}"))?;
                self.finish.special(&dir, name, &entry)
            }
        }
    }

    /// The directory of a cleaned path, through symlinks of this layer as they are seen from its
    /// root; what is missing is made, as root's with mode 755.
    fn dir(&mut self, path: &Path, symlinks: usize) -> Done<Rc<Dir>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Rc::clone(&self.root));
        };
        if let Some(known) = self.dirs.get(path) {
            return Ok(Rc::clone(known));
        }
        let above = self.dir(parent, symlinks)?;
        let open = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            openat2(&above.fd, name, flags, Mode::empty(), beneath)
        };
        let fd = match open() {
            Err(Errno::NOENT) => {
                let mode = Mode::from_raw_mode(0o755);
                mkdirat(&above.fd, name, mode).map_err(step("making its directory"))?;
                let fd = open().map_err(step("opening its directory"))?;
                self.finish.default_dir(&fd).map_err(step("the mode of its directory"))?;
                fd
            }
            Err(Errno::LOOP | Errno::NOTDIR) => match readlinkat(&above.fd, name, Vec::new()) {
                Ok(_) if symlinks >= MAX_SYMLINKS => {
                    return Err("its directory is behind too many symlinks".to_owned());
                }
                Ok(link) => {
                    let real = target(&above.path, link.as_bytes());
                    let dir = self.dir(&real, symlinks + 1)?;
                    return Ok(self.remember(path, dir));
                }
                Err(_) => self.dir_for_whiteout(&above, name)?,
            },
            done => done.map_err(step("opening its directory"))?,
        };
        let plain = self.finish.is_plain(&fd).map_err(step("stat of its directory"))?;
        let dir = Rc::new(Dir { fd, path: above.path.join(name), plain });
        Ok(self.remember(path, dir))
    }

    /// Makes a directory of a whiteout: the layer deletes what was below, and has a new one.
    fn dir_for_whiteout(&mut self, above: &Dir, name: &OsStr) -> Done<OwnedFd> {
        let stat = statat(&above.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if !device || stat.st_rdev != 0 {
            return Err("what should be its directory is none".to_owned());
        }
        unlinkat(&above.fd, name, AtFlags::empty()).map_err(step("unlink"))?;
        let mode = Mode::from_raw_mode(0o755);
        mkdirat(&above.fd, name, mode).map_err(step("making its directory"))?;
        let fd = self.open_child(above, name).map_err(step("opening its directory"))?;
        self.finish.default_dir(&fd).map_err(step("the mode of its directory"))?;
        mark::set_opaque(&fd, self.options.namespace).map_err(step("marking it opaque"))?;
        Ok(fd)
    }

    fn remember(&mut self, path: &Path, dir: Rc<Dir>) -> Rc<Dir> {
        if self.dirs.len() >= OPEN_DIRS {
            self.dirs.clear();
        }
        self.dirs.insert(path.to_owned(), Rc::clone(&dir));
        dir
    }

    /// Makes `name`; what has the name goes first, and whether that was a whiteout is said.
    fn make<T>(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        make: impl Fn() -> std::result::Result<T, Errno>,
    ) -> Done<(T, bool)> {
        match make() {
            Ok(made) => Ok((made, false)),
            Err(Errno::EXIST) => {
                let was_whiteout = self.make_room(dir, name)?;
                Ok((make().map_err(|e| e.to_string())?, was_whiteout))
            }
            Err(e) => Err(e.to_string()),
        }
    }

    /// Removes what has the name, and says whether it was a whiteout. Data that the recipe needs
    /// is kept beside the tree.
    fn make_room(&mut self, dir: &Dir, name: &OsStr) -> Done<bool> {
        let stat = statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            unlinkat(&dir.fd, name, AtFlags::empty()).map_err(step("unlink"))?;
            return Ok(true);
        }
        self.replaced += 1;
        if self.replaced > MAX_REPLACED {
            return Err(format!("the layer replaces more than {MAX_REPLACED} of its own entries"));
        }
        let path = dir.path.join(name);
        self.dirs.clear();
        // No file that goes or is copied, or is looked for by its path, is half filled.
        self.behind.wait()?;
        let needed = match kind {
            FileType::Directory => {
                self.last.retain(|last| !last.path.starts_with(&path));
                self.files.forget(&path);
                true
            }
            FileType::RegularFile => {
                self.files.forget(&path);
                self.records.contains_key(&path)
            }
            _ => false,
        };
        if !needed {
            unlinkat(&dir.fd, name, AtFlags::empty()).map_err(step("unlink"))?;
            return Ok(false);
        }
        let aside = self.aside(dir, name, kind == FileType::RegularFile && stat.st_nlink > 1)?;
        let gone: Vec<PathBuf> =
            self.records.keys().filter(|known| known.starts_with(&path)).cloned().collect();
        for known in gone {
            let rest = known.strip_prefix(&path).unwrap_or(Path::new(""));
            let to = if rest.as_os_str().is_empty() { aside.clone() } else { aside.join(rest) };
            if let Some((first, count)) = self.records.remove(&known) {
                self.moved.extend((first..first + count).map(|number| (number, to.clone())));
            }
        }
        Ok(false)
    }

    /// Moves a name out of the tree, and says where to. A file that has other names is copied, so
    /// that its links are counted right.
    fn aside(&mut self, dir: &Dir, name: &OsStr, linked: bool) -> Done<PathBuf> {
        match mkdirat(&self.layer, "replaced", Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(step("keeping what it replaces")(e)),
        }
        let to = PathBuf::from(format!("replaced/{}", self.replaced));
        if !linked {
            renameat_with(&dir.fd, name, &self.layer, &to, RenameFlags::NOREPLACE)
                .map_err(step("keeping what it replaces"))?;
            return Ok(to);
        }
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = openat(&dir.fd, name, read, Mode::empty()).map_err(step("opening"))?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let copy = openat(&self.layer, &to, write, Mode::RUSR | Mode::WUSR)
            .map_err(step("keeping what it replaces"))?;
        sys::copy::data(&from, &copy).map_err(|e| format!("keeping what it replaces: {e}"))?;
        unlinkat(&dir.fd, name, AtFlags::empty()).map_err(step("unlink"))?;
        Ok(to)
    }

    /// The entry of the root itself.
    fn top(&mut self, entry: &Entry) -> Done<()> {
        let root = Rc::clone(&self.root);
        let inherited = self.finish.dir(&root.fd, entry, false)?;
        self.last.push(Last { path: PathBuf::new(), mtime: entry.mtime, inherited });
        Ok(())
    }

    fn whiteout(&mut self, dir: &Dir, name: &OsStr) -> Done<()> {
        if name == mark::AUFS_OPAQUE {
            return mark::set_opaque(&dir.fd, self.options.namespace)
                .map_err(step("marking its directory opaque"));
        }
        if name.as_bytes().starts_with(b".wh..wh.") {
            // Bookkeeping of AUFS itself.
            return Ok(());
        }
        let Some(hidden) = mark::aufs_hidden(name) else {
            return Err("it is a whiteout of no name".to_owned());
        };
        match mknodat(&dir.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            // The layer has the name itself: it hides what is below, a directory where it is opaque.
            Err(Errno::EXIST) => match self.open_child(dir, hidden) {
                Ok(fd) => {
                    mark::set_opaque(&fd, self.options.namespace).map_err(step("marking it opaque"))
                }
                Err(_) => Ok(()),
            },
            Err(e) => Err(step("making a whiteout")(e)),
        }
    }

    fn open_child(&self, dir: &Dir, name: &OsStr) -> std::result::Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&dir.fd, name, flags, Mode::empty())
    }

    fn directory(&mut self, dir: &Rc<Dir>, name: &OsStr, entry: &Entry) -> Done<()> {
        let mode = Mode::from_raw_mode(entry.mode & 0o777) | Mode::RWXU;
        let mut made = true;
        let mut opaque = false;
        match mkdirat(&dir.fd, name, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat =
                    statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    made = false;
                } else {
                    opaque = self.make_room(dir, name)?;
                    mkdirat(&dir.fd, name, mode).map_err(step("making a directory"))?;
                }
            }
            Err(e) => return Err(step("making a directory")(e)),
        }
        let fd = self.open_child(dir, name).map_err(step("opening it"))?;
        let inherited = self.finish.dir(&fd, entry, made && dir.plain)?;
        if opaque {
            mark::set_opaque(&fd, self.options.namespace).map_err(step("marking it opaque"))?;
        }
        let path = dir.path.join(name);
        let plain = entry.mode & 0o2000 == 0;
        self.remember(&path, Rc::new(Dir { fd, path: path.clone(), plain }));
        self.last.push(Last { path, mtime: entry.mtime, inherited });
        Ok(())
    }

    fn file<R: BufRead, W: Write>(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        entry: Entry,
        reader: &mut Reader<R>,
        recipe: &mut recipe::Writer<W>,
    ) -> Done<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let (fd, _) = self
            .make(dir, name, || openat(&dir.fd, name, flags, mode))
            .map_err(|e| format!("making the file: {e}"))?;
        let path = dir.path.join(name);
        let whole = [(0, entry.size)];
        let parts = entry.parts.as_deref().unwrap_or(&whole);
        let mut first = None;
        let stored = Path::new("fs").join(&path);
        for (offset, length) in parts {
            let number = recipe.data(&stored, *offset, *length).map_err(|e| e.to_string())?;
            first.get_or_insert(number);
        }
        if let Some(first) = first {
            self.records.insert(path.clone(), (first, parts.len() as u64));
        }
        let new = New { fd, path, entry, plain: dir.plain };
        self.behind.fill(self.files, new, reader)
    }

    fn hard_link(&mut self, dir: &Dir, name: &OsStr, entry: &Entry) -> Done<()> {
        let link = clean(&entry.link)?;
        let (Some(parent), Some(link_name)) = (link.parent(), link.file_name()) else {
            return Err("it links to the root".to_owned());
        };
        let from = self.dir(parent, 0)?;
        if (&from.path, link_name) == (&dir.path, name) {
            return Err("it links to itself".to_owned());
        }
        let stat = statat(&from.fd, link_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| format!("it links to {link:?}, which is not in its layer: {e}"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0 {
            return Err("it links to a whiteout".to_owned());
        }
        let none = AtFlags::empty();
        self.make(dir, name, || linkat(&from.fd, link_name, &dir.fd, name, none))
            .map(|_| ())
            .map_err(|e| format!("linking it to {link:?}: {e}"))
    }

    fn finish(&mut self) -> Done<()> {
        self.behind.wait()?;
        for Last { path, mtime, inherited } in std::mem::take(&mut self.last) {
            let dir = self.dir(&path, 0)?;
            if let Some(acl) = inherited {
                fsetxattr(&dir.fd, DEFAULT_ACL, &acl, XattrFlags::empty())
                    .map_err(step("setting what its entries inherit"))?;
            }
            futimens(&dir.fd, &times(mtime)).map_err(step("setting its times"))?;
        }
        Ok(())
    }
}

/// What new names in a directory inherit.
pub(crate) const DEFAULT_ACL: &str = "system.posix_acl_default";
