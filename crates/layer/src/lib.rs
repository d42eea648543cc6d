//! What one layer is on disk: whiteouts, opaque marks, private attributes.
//!
//! Every mark is read and written here and nowhere else. [`Layer::probe`] is one layer's answer
//! about one name; the union folds the answers of all layers. [`Layer::tree`] is all that it has, and
//! [`account`] tells what each of a stack of layers adds, changes, hides and wastes.
//!
//! Source: kernel `Documentation/filesystems/overlayfs.rst`, "Whiteouts and opaque directories";
//! OCI image specification, "Whiteouts", for the `.wh.` names.

pub mod account;
pub mod error;
pub mod mark;
pub mod origin;
pub mod owner;
pub mod probe;
pub mod tree;

pub use account::Account;
pub use error::{Error, Result, Step};
pub use mark::Namespace;
pub use owner::{Owner, Owners};
pub use probe::{Kind, Layer, Probe, WANTED};
