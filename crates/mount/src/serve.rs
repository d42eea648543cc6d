//! From options to a mount that serves until it is unmounted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use fuse::mount::MountConfig;
use fuse::{Session, SessionConfig};
use layer::{Namespace, Owners};
use rustix::mount::MountFlags;
use union::Union;

use crate::adapter::Adapter;
use crate::idle;
use crate::options::{Options, Partial};
use crate::readahead;

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layers can't make a union.
    #[error("cannot make a union of these layers: {0}")]
    Union(#[from] union::Error),
    /// A path into the layer would lead back into the mount, which would wait for itself.
    #[error("the mountpoint lies in {0:?}, which the mount is made of: choose one outside it")]
    InsideLayer(std::path::PathBuf),
    /// The kernel does not mount it, or ended the connection.
    #[error("{0}")]
    Fuse(#[from] io::Error),
}

/// A mount that the kernel has agreed to and that waits to be served.
pub struct Mounted {
    session: Session<Adapter>,
    adapter: Arc<Adapter>,
    partial: Partial,
}

/// Opens the layers, mounts them at `mountpoint` and shakes hands with the kernel. The mount answers once
/// [`Mounted::serve`] runs.
///
/// # Errors
/// One clear line; nothing is left mounted.
pub fn mount(options: &Options, mountpoint: &Path) -> Result<Mounted, Error> {
    // Over a layer is no matter, for it is open already; nor in a lower one that is on a mount of its own.
    let place = mountpoint.canonicalize()?;
    let root = rustix::process::geteuid().is_root();
    let lowers = if root { &[] } else { options.lowers.as_slice() };
    for dir in options.upper.iter().chain(&options.work).chain(lowers) {
        let inside = dir.canonicalize().is_ok_and(|dir| place.starts_with(&dir) && place != dir);
        if inside {
            return Err(Error::InsideLayer(dir.clone()));
        }
    }
    let upper = options.upper.clone().zip(options.work.clone());
    let namespace = if options.userxattr { Namespace::User } else { Namespace::Trusted };
    let config = union::Config {
        lowers: options.lowers.clone(),
        upper,
        namespace,
        volatile: options.volatile,
        limits: union::Limits { bytes: options.size, inodes: options.inodes },
        index: !options.no_index,
        partial: options.partial != Partial::Off,
    };
    let union = Union::open(&config)?;
    let union = match options.xattr_permissions {
        Some(1) => union.keep_owners(Owners::Privileged)?,
        Some(_) => union.keep_owners(Owners::Containers)?,
        None => union,
    };
    let union = match &options.counters {
        Some(file) => union.count_in(file)?,
        None => union,
    };
    // The kernel would take set-user-ID from the file that it writes itself, and not from the attribute.
    let keeps_owners = union.keeps_owners();
    let read_only = options.read_only || union.is_read_only();
    let adapter = Arc::new(Adapter::new(union, options));
    let mut flags = MountFlags::empty();
    // Without privileges set-user-ID and devices of a layer must not count, whoever wrote it.
    for (on, flag) in [
        (read_only, MountFlags::RDONLY),
        (options.noatime, MountFlags::NOATIME),
        (options.noexec, MountFlags::NOEXEC),
        (options.nosuid || !root, MountFlags::NOSUID),
        (options.nodev || !root, MountFlags::NODEV),
    ] {
        if on {
            flags |= flag;
        }
    }
    let mount = MountConfig {
        source: options.source.clone().unwrap_or_else(|| "strata".to_owned()),
        subtype: "strata".to_owned(),
        flags: flags.bits().into(),
        default_permissions: true,
        allow_other: root && !options.private,
        security: options.security.clone(),
    };
    let device = fuse::mount::mount(mountpoint, &mount)?;
    // The first lookup opens the root of each layer.
    let layers = u32::try_from(options.lowers.len()).unwrap_or(u32::MAX);
    sys::memory::reserve_descriptors(&device, layers.saturating_mul(4).saturating_add(1024));
    let session = SessionConfig::default();
    let started = Session::start(device, Arc::clone(&adapter), &session).map_err(Error::from);
    // Last of all, so that what fails leaves no mark.
    let marked = started.and_then(|session| Ok(adapter.union.mark_volatile().map(|()| session)?));
    match marked {
        Ok(session) => {
            adapter.connect(session.connection());
            if let Err(error) = readahead::widen(mountpoint) {
                tracing::debug!(%error, "the kernel reads ahead as it does by itself");
            }
            // What the kernel writes itself is not counted.
            let counted = options.size.is_some() || options.inodes.is_some();
            if session.negotiated().has(fuse::wire::init::PASSTHROUGH) && !counted && !keeps_owners
            {
                adapter.enable_passthrough(session.connection());
            }
            Ok(Mounted { session, adapter, partial: options.partial })
        }
        Err(error) => {
            if let Err(left) = fuse::mount::unmount(mountpoint, true) {
                tracing::warn!(%left, "cannot unmount what failed to start");
            }
            Err(error)
        }
    }
}

impl Mounted {
    /// Whether requests come over io_uring.
    pub fn over_uring(&self) -> bool {
        self.session.negotiated().has(fuse::wire::init::OVER_IO_URING)
    }

    /// Answers the kernel until the mount is gone, and completes what is partial in the upper layer.
    ///
    /// # Errors
    /// Of the connection; of the completion: the upper layer then waits, whole, for the next mount.
    pub fn serve(self) -> Result<(), Error> {
        let union = &self.adapter.union;
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let served = std::thread::scope(|scope| {
            scope.spawn(move || idle::complete(union, &stopped));
            scope.spawn(move || idle::sync(union));
            let served = self.session.serve();
            drop(stop);
            let synced = union.end_sync();
            served.map_err(Error::from).and_then(|()| Ok(synced?))
        });
        if self.partial != Partial::Keep {
            union.complete()?;
        }
        served
    }
}
