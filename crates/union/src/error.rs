//! What the union answers when it can't.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Looking a name up, or reading what it shows.
    Read,
    /// Bringing a file or directory into the upper layer.
    CopyUp,
    /// Staging something new in the work directory.
    Stage,
    /// Making a staged thing visible.
    Publish,
    /// Removing or hiding a name.
    Remove,
    /// Changing data or attributes in the upper layer.
    Change,
    /// Taking the upper and work directories for this union alone.
    Claim,
}

/// Why an operation of the union failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no upper layer.
    #[error("{path:?} cannot change: the union has no upper layer")]
    ReadOnly {
        /// What was to change.
        path: PathBuf,
    },
    /// The operation is refused as POSIX or overlayfs has it.
    #[error("{path:?}: {source}")]
    Refused {
        /// What was asked for.
        path: PathBuf,
        /// The answer.
        #[source]
        source: Errno,
    },
    /// Another union has the upper layer.
    #[error("{upper:?} is the upper layer of another mount: unmount that first")]
    UpperInUse {
        /// The upper layer.
        upper: PathBuf,
    },
    /// A rename can't go from one file system to another.
    #[error("workdir {work:?} must be on the file system of upperdir: choose another directory")]
    WorkElsewhere {
        /// The work directory.
        work: PathBuf,
    },
    /// The upper layer has a feature that would be misread.
    #[error(
        "{work:?} was written with a feature that is unknown here: use the version that wrote it"
    )]
    UnknownFeature {
        /// The work directory.
        work: PathBuf,
    },
    /// The kernel's index has files that would be shown as they were before.
    #[error(
        "{work:?} has an index of hard links whose other names would show the old files: mount it with index=on"
    )]
    KernelIndex {
        /// The work directory.
        work: PathBuf,
    },
    /// The upper layer keeps owners in one attribute, and another was asked for.
    #[error(
        "{upper:?} has its owners in {attribute}: mount it with the xattr_permissions that it was written with"
    )]
    OtherOwners {
        /// The upper layer.
        upper: PathBuf,
        /// Where its owners are.
        attribute: &'static str,
    },
    /// The upper layer was written without a sync, and may lack anything after a crash.
    #[error(
        "the upper layer of {work:?} was mounted volatile, and may have lost data if the machine crashed since: take an empty one, or remove {work:?}/work/incompat/volatile to use it all the same"
    )]
    WasVolatile {
        /// The work directory.
        work: PathBuf,
    },
    /// A loss of power took data of a copy, and the file that it is a copy of is not in the layers.
    #[error(
        "{path:?} lost data when the power failed, and no lower layer has the file that it is a copy of: mount the upper \
         layer with the lower layers that it was written over"
    )]
    LostLower {
        /// The path in the upper layer.
        path: PathBuf,
    },
    /// A layer could not be read.
    #[error(transparent)]
    Layer(#[from] layer::Error),
    /// A system call failed.
    #[error("{path:?} failed at {step:?}: {source}")]
    Call {
        /// The path in the union.
        path: PathBuf,
        /// What was being done.
        step: Step,
        /// The call.
        #[source]
        source: sys::Error,
    },
}

impl Error {
    /// The error number that a program sees.
    pub fn errno(&self) -> Errno {
        match self {
            Self::ReadOnly { .. } => Errno::ROFS,
            Self::Refused { source, .. } => *source,
            Self::UpperInUse { .. } => Errno::BUSY,
            Self::WorkElsewhere { .. } => Errno::XDEV,
            Self::UnknownFeature { .. } | Self::WasVolatile { .. } | Self::KernelIndex { .. } => {
                Errno::NOTSUP
            }
            Self::OtherOwners { .. } => Errno::INVAL,
            Self::LostLower { .. } => Errno::UCLEAN,
            Self::Layer(e) => e.source.source,
            Self::Call { source, .. } => source.source,
        }
    }
}

/// What the union's operations give.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn refused(path: &Path, source: Errno) -> Error {
    Error::Refused { path: path.to_owned(), source }
}

pub(crate) fn call(path: &Path, step: Step, name: &'static str, e: Errno) -> Error {
    Error::Call { path: path.to_owned(), step, source: sys::Error::new(name, path, e) }
}
