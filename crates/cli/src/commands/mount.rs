//! `strata mount`, and the names by which others know such a program: shows a union of layers at a directory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::CommandFactory;
use containers::Container;
use mount::{Options, Remount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::place::Place;

/// Mount a union of layers or a container's tree, and return once it serves
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  strata mount -o lowerdir=B:A,upperdir=U,workdir=W /mnt
  strata mount web /mnt

umount(8) and fusermount3 -u end a union, strata umount that of a container.")]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// lowerdir=UPPERMOST:…:LOWEST[,upperdir=DIR,workdir=DIR][,OPTION…]
    #[arg(short = 'o')]
    options: Vec<OsString>,
    /// Stay in front
    #[arg(short, long = "foreground")]
    front: bool,
    /// Log each request, in front
    #[arg(short, long)]
    debug: bool,
    /// The type that mount(8) was asked for; of no effect
    #[arg(short = 't', hide = true)]
    kind: Option<OsString>,
    /// Flags of mount(8) and of libfuse that are of no effect
    #[arg(short = 's', short_aliases = ['n', 'v'], hide = true, action = clap::ArgAction::Count)]
    ignored: u8,
    /// We are the daemon: say on stdout when the mount serves
    #[arg(long, hide = true)]
    serving: bool,
    /// End with the process that started us
    #[arg(long, hide = true)]
    with_parent: bool,
    /// Where the union is shown; a source before it, as mount(8) gives, is ignored. Without options a container, and
    /// where its tree is shown: in its own directory otherwise, whose path is printed
    #[arg(required = true, num_args = 1..=2, value_name = "CONTAINER|MOUNTPOINT")]
    places: Vec<PathBuf>,
}

/// Unmount containers' trees
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  strata umount web")]
pub struct UnmountArgs {
    #[command(flatten)]
    place: Place,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

pub fn unmount(args: &UnmountArgs) -> anyhow::Result<()> {
    let store = args.place.open()?;
    for name in &args.containers {
        Container::find(&store, name)?.unmount()?;
        writeln!(std::io::stdout(), "{name}")?;
    }
    Ok(())
}

fn container(args: &Args) -> anyhow::Result<()> {
    let (Some(name), at) = (args.places.first().and_then(|name| name.to_str()), args.places.get(1))
    else {
        bail!("no container and no options given");
    };
    let store = args.place.open()?;
    let found = Container::find(&store, name);
    let container =
        found.context("without -o lowerdir=… a container is mounted; see strata mount --help")?;
    let at = at.cloned().unwrap_or_else(|| container.dir.join("merged"));
    let at = std::fs::canonicalize(&at).with_context(|| format!("no mountpoint {at:?}"))?;
    container.mount(&store, &at, Path::new("/proc/self/exe"))?;
    writeln!(std::io::stdout(), "{}", at.display())?;
    Ok(())
}

/// Runs under a name that is not ours, or as mount.fuse3 runs us: the arguments as `strata mount` takes them, or the
/// answer to a question that needs no mount. `None` for everything else.
pub fn by_name(args: &[OsString]) -> Option<Result<Vec<OsString>, ExitCode>> {
    let name = Path::new(args.first()?).file_name()?;
    // `strata SOURCE MOUNTPOINT -o OPTIONS`, for the type fuse.strata.
    if let [_, source, place, option, ..] = args
        && option == "-o"
        && [source, place].iter().all(|arg| !arg.as_encoded_bytes().starts_with(b"-"))
        && crate::Strata::command().find_subcommand(source).is_none()
    {
        let ours = ["strata", "mount"].map(OsString::from).into_iter();
        return Some(Ok(ours.chain(args[1..].iter().cloned()).collect()));
    }
    if name != "fuse-overlayfs" && name != "mount.fuse.strata" && name != "mount.strata" {
        return None;
    }
    let rest = &args[1..];
    if rest.iter().any(|arg| arg == "--version" || arg == "-V") {
        // Callers of fuse-overlayfs look for its name in the first line.
        println!("{}: version {} (strata)", name.display(), env!("CARGO_PKG_VERSION"));
        return Some(Err(ExitCode::SUCCESS));
    }
    // An engine reads the upper layer when umount(2) has returned, which the completion of a file outlasts; and it does
    // not read the index beside it.
    let engine = name == "fuse-overlayfs";
    let ours: &[&str] = if engine {
        &["strata", "mount", "-o", "partial=off,index=off"]
    } else {
        &["strata", "mount"]
    };
    let ours = ours.iter().map(OsString::from);
    Some(Ok(ours.chain(rest.iter().cloned()).collect()))
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.options.is_empty() && !args.serving {
        return container(args);
    }
    let place = args.places.last().context("no mountpoint given")?;
    // The daemon leaves this directory, and unmounts by name when it is told to end.
    let place = std::fs::canonicalize(place).with_context(|| format!("no mountpoint {place:?}"));
    if let Some(remount) = Remount::asked(&args.options) {
        return Ok(remount.apply(&place?)?);
    }
    let parsed = Options::parse(&args.options).map_err(anyhow::Error::msg)?;
    if !args.serving {
        for warning in &parsed.warnings {
            eprintln!("strata: {warning}");
        }
    }
    let place = place?;
    if !place.is_dir() {
        bail!("mountpoint {place:?} is not a directory");
    }
    if args.front || args.debug || args.serving {
        serve(args, &parsed.options, &place)
    } else {
        background(args, &place)
    }
}

/// Starts ourselves as the daemon, and waits until it says that it serves. It complains on our stderr itself.
fn background(args: &Args, place: &Path) -> anyhow::Result<()> {
    // What is open here is what the caller has left open: a lock of its, perhaps, which the daemon would hold. It stays
    // where a layer is named by it.
    let named = |options: &OsString| options.to_string_lossy().contains("/fd/");
    if !args.options.iter().any(named) {
        sys::inherited::close_all_but(None).context("what the caller has open stays open")?;
    }
    let mut command = Command::new("/proc/self/exe");
    command.arg0("strata").args(["mount", "--serving"]);
    for options in &args.options {
        command.args([OsStr::new("-o"), options]);
    }
    command.arg("--").arg(place).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("the daemon can't be started")?;
    let mut said = Vec::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_end(&mut said).context("the daemon can't be heard")?;
    }
    if said.is_empty() {
        let status = child.wait().context("the daemon is lost")?;
        if status.code() == Some(1) {
            std::process::exit(1);
        }
        bail!("the daemon ended before the mount served ({status})");
    }
    Ok(())
}

fn serve(args: &Args, options: &Options, place: &Path) -> anyhow::Result<()> {
    if args.debug {
        let log = tracing_subscriber::fmt().with_writer(std::io::stderr);
        log.with_max_level(tracing::Level::DEBUG).init();
    }
    let ends = sys::signal::Ends::hold().context("signals can't be held")?;
    raise_limit();
    if args.with_parent {
        runtime::launch::die_with_parent()?;
    }
    // What is made has the mode that its maker asked for; whatever is ours alone says so itself.
    rustix::process::umask(rustix::fs::Mode::empty());
    let mounted = mount::mount(options, place)?;
    if args.serving {
        detach().context("the mount is up, but the daemon can't leave its caller")?;
    }
    let mountpoint = place.to_owned();
    std::thread::spawn(move || {
        while ends.wait().is_ok() {
            if let Err(error) = fuse::mount::unmount(&mountpoint, true) {
                tracing::warn!(%error, "cannot unmount");
                std::process::exit(1);
            }
        }
    });
    mounted.serve().context("the mount ended early")
}

/// Says that the mount serves, and lets go of everything of the caller.
fn detach() -> anyhow::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    // It would be "exe", as what was executed.
    rustix::thread::set_name(c"strata")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    std::io::stdout().write_all(b"serving\n")?;
    std::io::stdout().flush()?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Every open file of the mount is a descriptor here.
fn raise_limit() {
    let hard = getrlimit(Resource::Nofile).maximum;
    let raised = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on open files stays");
    }
}
