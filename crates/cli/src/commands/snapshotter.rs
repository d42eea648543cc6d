//! `strata snapshotter`: containerd's layers are the store's.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use snapshotter::Containerd;
use snapshotter::metrics::Metrics;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::context::Context;

/// Serve as a snapshotter and differ of containerd, until told to end
///
/// In containerd's configuration (strata install containerd writes it):
///
///   [proxy_plugins.strata]
///     type = "snapshot"
///     address = "/run/strata/snapshotter.sock"
///   [proxy_plugins.strata-diff]
///     type = "diff"
///     address = "/run/strata/snapshotter.sock"
///   [plugins."io.containerd.service.v1.diff-service"]
///     default = ["strata-diff", "walking"]
///
/// Then `ctr images pull --snapshotter strata …`. Containers that run are not disturbed when this ends or starts anew.
/// Snapshots with the label containerd.io/snapshot/strata.io/size=2G (or inodes=100K, or partial-copy-up=true) are
/// mounted by Strata's union, all others by the kernel's overlayfs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata snapshotter --metrics 127.0.0.1:9464\n  strata snapshotter --log-json --log debug"
)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    context: Context,
    /// The socket on which containerd calls
    #[arg(long, default_value = "/run/strata/snapshotter.sock")]
    address: PathBuf,
    /// The socket of containerd
    #[arg(long, default_value = "/run/containerd/containerd.sock", value_name = "SOCKET")]
    containerd: PathBuf,
    /// The directory of containerd's content store; what is not there is asked for over its socket
    #[arg(
        long,
        default_value = "/var/lib/containerd/io.containerd.content.v1.content",
        value_name = "DIR"
    )]
    content: PathBuf,
    /// Where Prometheus may ask for metrics, under /metrics: HOST:PORT, or the path of a socket
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    /// What is logged, on standard error: error, warn, info, debug, or as RUST_LOG has it
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: String,
    /// Log lines as JSON
    #[arg(long)]
    log_json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)
        .with_context(|| format!("--log {:?} is no level", args.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    if args.log_json {
        log.json().init();
    } else {
        log.init();
    }
    let store = Arc::new(args.context.store()?);
    let engine = Containerd { address: args.containerd.clone(), content: args.content.clone() };
    let counters = Arc::new(Metrics::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let inherited = inherited()?;
        let ours = inherited.is_none();
        let socket = match inherited {
            Some(socket) => socket,
            None => listen(&args.address).await?,
        };
        if let Some(at) = &args.metrics {
            show_metrics(at, Arc::clone(&counters)).await?;
        }
        let (mut term, mut int) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        tracing::info!(address = %args.address.display(), "serving");
        snapshotter::serve(store, &engine, counters, socket, stop)
            .await
            .context("the snapshotter can't serve")?;
        if ours {
            std::fs::remove_file(&args.address).context("the socket can't be removed")?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The socket that systemd has opened for us, by its protocol of socket activation.
fn inherited() -> anyhow::Result<Option<UnixListener>> {
    let variable = |name: &str| std::env::var(name).ok();
    let pid = variable("LISTEN_PID").and_then(|pid| pid.parse::<u32>().ok());
    if pid != Some(std::process::id()) {
        return Ok(None);
    }
    match variable("LISTEN_FDS").as_deref() {
        Some("1") => {}
        count => bail!("systemd gives {count:?} sockets, and one is served"),
    }
    // The first one is descriptor 3.
    let socket = sys::inherited::descriptor(3).context("systemd's socket is no good")?;
    let socket = std::os::unix::net::UnixListener::from(socket);
    socket.set_nonblocking(true)?;
    Ok(Some(UnixListener::from_std(socket)?))
}

/// Serves metrics on a port or a socket, from now on.
async fn show_metrics(at: &str, counters: Arc<Metrics>) -> anyhow::Result<()> {
    let failed = || format!("metrics can't be served on {at}");
    if at.contains('/') {
        let socket = listen(Path::new(at)).await.with_context(failed)?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                answer(stream, Arc::clone(&counters));
            }
        });
    } else {
        let port = TcpListener::bind(at).await.with_context(failed)?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = port.accept().await {
                answer(stream, Arc::clone(&counters));
            }
        });
    }
    Ok(())
}

fn answer(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    counters: Arc<Metrics>,
) {
    tokio::spawn(async move {
        let asked = tokio::time::timeout(Duration::from_secs(10), counters.answer(stream)).await;
        if !matches!(asked, Ok(Ok(()))) {
            tracing::debug!(?asked, "who asked for metrics has gone");
        }
    });
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
