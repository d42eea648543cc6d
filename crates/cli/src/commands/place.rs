//! Where the store is.

use std::path::PathBuf;

use anyhow::Context;
use runtime::launch::Users;
use store::Store;

/// Where images and containers are
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// The store: /var/lib/strata for root, otherwise ~/.local/share/strata
    #[arg(long, env = "STRATA_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
}

impl Place {
    /// The directory.
    pub fn root(&self) -> anyhow::Result<PathBuf> {
        if let Some(root) = &self.root {
            return Ok(std::path::absolute(root)?);
        }
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/strata".into());
        }
        let home =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        home("XDG_DATA_HOME")
            .or_else(|| home("HOME").map(|home| home.join(".local/share")))
            .map(|dir| dir.join("strata"))
            .context("neither XDG_DATA_HOME nor HOME is set: give --root")
    }

    /// The store there.
    pub fn open(&self) -> anyhow::Result<Store> {
        let root = self.root()?;
        Store::open(&root).with_context(|| format!("cannot open the store in {root:?}"))
    }
}

/// Without privileges, makes this process root among the users of containers: what they own is to be read or removed.
/// For a process with one thread.
pub fn become_root() -> anyhow::Result<()> {
    let users = Users::for_container();
    if users != Users::Kept {
        runtime::launch::isolate(users)?;
    }
    Ok(())
}
