//! `strata snapshotter`: containerd's layers are the store's.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::context::Context;

/// Serve as a snapshotter of containerd, until told to end
///
/// In containerd's configuration:
///
///   [proxy_plugins.strata]
///     type = "snapshot"
///     address = "/run/strata/snapshotter.sock"
///
/// Then `ctr images pull --snapshotter strata …`. Containers that run are not disturbed when this ends or starts anew.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The socket on which containerd calls
    #[arg(long, default_value = "/run/strata/snapshotter.sock")]
    address: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = Arc::new(args.context.store()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = listen(&args.address).await?;
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        tracing::info!(address = %args.address.display(), "serving");
        snapshotter::serve(store, socket, stop).await.context("the snapshotter can't serve")?;
        std::fs::remove_file(&args.address).context("the socket can't be removed")?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Binds the socket, in place of one that nobody listens on any more.
async fn listen(address: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = address.parent() {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("the socket's directory {} can't be made", dir.display()))?;
    }
    if let Ok(meta) = std::fs::symlink_metadata(address) {
        if !meta.file_type().is_socket() {
            bail!("{} is there and no socket: choose another --address", address.display());
        }
        if UnixStream::connect(address).await.is_ok() {
            bail!("another snapshotter serves on {}: stop it first", address.display());
        }
        std::fs::remove_file(address).context("the old socket can't be removed")?;
    }
    let socket = UnixListener::bind(address)
        .with_context(|| format!("cannot listen on {}", address.display()))?;
    // Who may call can read every image and write to every container.
    std::fs::set_permissions(address, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}
