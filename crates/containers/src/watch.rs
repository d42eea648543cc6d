//! The process that watches one container from its start to its end.
//!
//! It is this program, executed for it, in a mount namespace of its own: the layers are shown there, and are gone when
//! it goes, however that is. It holds the container's lock all the while, passes signals on, and writes down the end.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use layer::Namespace;
use runtime::capability;
use runtime::cgroup::{Group, Machine, group};
use runtime::launch::{Files, Runtime, Users};
use runtime::seccomp::Seccomp;
use runtime::spec::{INIT, Mount, Process, Resources, Root, Spec};
use runtime::standard::{self, Choices};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use store::Store;
use sys::signal::Signals;

use crate::container::{Config, Container, Filter, Groups, State, Volume, seconds};
use crate::view::{Choice, Keeper, Partial};
use crate::{Error, Result, tree, view, volumes};

/// The subcommand under which a program that embeds this calls [`watch`].
pub const WATCH: &str = "__watch";

/// Where PATH leads in an image that does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Places that every container is mounted on. An image that lacks one has it from a layer below all its own, so that
/// no start writes to the upper layer.
const PLACES: [(&str, bool); 9] = [
    ("proc", true),
    ("sys", true),
    ("dev", true),
    ("etc", true),
    ("tmp", true),
    ("etc/hosts", false),
    ("etc/hostname", false),
    ("etc/resolv.conf", false),
    ("run", true),
];

/// Starts the container `id` of the store in `root` with this process's standard files, waits until it ends, and gives
/// its status. To be called by a process that was executed for it, with one thread; `exe` is its program.
///
/// `ready` is a descriptor of the caller's that is closed once the command runs. An `attached` container ends with the
/// process that started this one.
///
/// # Errors
/// Whatever kept it from running, to be said on standard error.
pub fn watch(exe: &Path, root: &Path, id: &str, ready: Option<i32>, attached: bool) -> Result<u8> {
    // What the caller's shell has open, a lock perhaps, is not for a container to hold.
    sys::inherited::close_all_but(ready)
        .map_err(|e| Error::io("close", "what the caller has left open", e.source))?;
    let mut ready = ready
        .map(sys::namespace::inherited)
        .transpose()
        .map_err(|e| Error::io("take over", "the caller's descriptor", e.source))?;
    let result = prepare(exe, root, id, &mut ready, attached);
    if let (Err(error), Some(ready)) = (&result, ready)
        && let Err(lost) = rustix::io::write(ready, error.to_string().as_bytes())
    {
        tracing::debug!(%lost, "nobody waits for the container to start");
    }
    result
}

fn prepare(
    exe: &Path,
    root: &Path,
    id: &str,
    ready: &mut Option<OwnedFd>,
    attached: bool,
) -> Result<u8> {
    if !attached {
        rustix::process::setsid().map_err(|e| Error::io("start", "a session", e))?;
    }
    let store = Store::open(root)?;
    let container = Container::find(&store, id)?;
    let lock = container.lock_stopped()?;
    container.forget_mount()?;
    container.mend(&store)?;
    let signals = Signals::hold_all().map_err(|e| Error::io("hold", "signals", e))?;
    let users = Users::for_container();
    runtime::launch::isolate(users)?;
    if attached {
        runtime::launch::die_with_parent()?;
    }
    let code = run(exe, &store, &container, &signals, ready, users != Users::Kept);
    if code.is_err() {
        view::hide(&container.dir.join("merged"))?;
        group::remove(&container.dir)?;
    }
    if container.config.remove {
        container.drop_from(&store, true)?;
        drop(lock);
        store.empty_trash()?;
    }
    code
}

fn run(
    exe: &Path,
    store: &Store,
    container: &Container,
    signals: &Signals,
    ready: &mut Option<OwnedFd>,
    rootless: bool,
) -> Result<u8> {
    let mut layers = container.layers(store)?;
    layers.lowers.push(places(store)?);
    // Whoever reads the writable layer makes it whole first, which without privileges nobody can ask for while it runs.
    layers.partial = if layers.rootless { Partial::Off } else { Partial::Keep };
    if container.config.backend != Choice::Fuse {
        container.make_whole(store)?;
    }
    container.note_start()?;
    let merged = container.dir.join("merged");
    layers.keeper = container.keep_limit()?;
    let by_project = matches!(layers.keeper, Keeper::Project(_));
    let choice = match container.config.backend {
        // It was made where the file system keeps limits, and that is so no longer: better slower than without.
        Choice::Kernel if container.config.project.is_some() && !by_project => Choice::Auto,
        asked => asked,
    };
    let mut shown = view::show(&layers, &merged, choice, exe)?;
    for volume in &container.config.volumes {
        if volume.anonymous {
            volumes::make(store, volume)?;
        }
        volumes::fill(store, volume, &merged)?;
    }
    let runtime = match &container.config.runtime {
        Some(path) => Runtime::Other(path.clone()),
        None => Runtime::Embedded(exe.to_owned()),
    };
    runtime.prepare()?;
    let resources = resources(&container.config);
    let group = group(container, &resources)?;
    let mut spec = spec(container, store, &merged, rootless, group.is_some())?;
    if by_project {
        spec.linux.seccomp = spec.linux.seccomp.map(Seccomp::within_project);
    }
    if let Some(group) = &group {
        spec.linux.cgroups_path = group.path().to_owned();
        spec.linux.resources = Some(resources.clone());
        let another = matches!(runtime, Runtime::Other(_));
        group.record(&container.dir, another)?;
        if !another {
            group.make(&resources)?;
        }
    }
    spec.write(&container.dir)?;
    runtime.delete(&container.dir, &container.id)?;
    let files = Files { stdin: inherit(0)?, stdout: inherit(1)?, stderr: inherit(2)? };
    let mut child =
        runtime.start(&container.dir, &container.id, files, ready.as_ref(), group.is_some())?;
    // Another runtime needs a while until there is a process; or it ends, and has said why.
    let lost = |e| Error::io("wait for", &container.dir, e);
    while runtime.pid(&container.dir, &child).is_none() && child.try_wait().map_err(lost)?.is_none()
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut state = State {
        started: seconds(),
        watcher: std::process::id(),
        backend: Some(shown.backend),
        why: shown.why,
        limited_by: shown.limited_by.map(str::to_owned),
        ..State::default()
    };
    state.pid = runtime.pid(&container.dir, &child).unwrap_or(0);
    container.write_state(&state)?;
    *ready = None;
    let daemon = shown.daemon.as_mut();
    let status = wait(&mut child, daemon, signals, &mut state, container)?;
    view::hide(&merged)?;
    if let Some(mut daemon) = shown.daemon {
        daemon.wait().map_err(|e| Error::io("wait for the daemon of", &merged, e))?;
    }
    state.finished = seconds();
    state.exit_code = Some(status);
    // Another runtime has removed the group already.
    let ours = group.is_some() && container.config.runtime.is_none();
    state.out_of_memory = ours.then(|| group::out_of_memory(&container.dir));
    container.write_state(&state)?;
    if let Err(error) = group::remove(&container.dir) {
        // Its end stands all the same; a removal or a collection tries again.
        tracing::warn!(%error, "the control group is left");
    }
    Ok(status)
}

/// Its limits; memory and swap together are twice its memory where nothing is said, as with Docker, and they can be.
fn resources(config: &Config) -> Resources {
    let mut resources = config.resources.clone();
    if let Some(memory) = &mut resources.memory
        && let Some(limit) = memory.limit
        && memory.swap.is_none()
        && Machine::look().counts_swap()
    {
        memory.swap = Some(limit.saturating_mul(2));
    }
    resources
}

/// Its control group, where it is to have one.
fn group(container: &Container, resources: &Resources) -> Result<Option<Group>> {
    // What a watcher that was killed has left.
    group::remove(&container.dir)?;
    let limited = !resources.controllers().is_empty();
    let config = &container.config;
    match config.cgroups {
        Groups::Disabled => Ok(None),
        Groups::Enabled => Ok(Some(Group::plan(&container.id, resources)?)),
        Groups::Auto if limited => Ok(Some(Group::plan(&container.id, resources)?)),
        // Only to end all its processes, which otherwise their namespace does.
        Groups::Auto if config.host_pid => Ok(Group::plan(&container.id, resources).ok()),
        Groups::Auto => Ok(None),
    }
}

fn inherit(number: u8) -> Result<Stdio> {
    let dup = match number {
        0 => std::io::stdin().as_fd().try_clone_to_owned(),
        1 => std::io::stdout().as_fd().try_clone_to_owned(),
        _ => std::io::stderr().as_fd().try_clone_to_owned(),
    };
    dup.map(Stdio::from).map_err(|e| Error::io("duplicate", "a standard file", e))
}

fn wait(
    child: &mut Child,
    mut daemon: Option<&mut Child>,
    signals: &Signals,
    state: &mut State,
    container: &Container,
) -> Result<u8> {
    let lost = |e| Error::io("wait for", &container.dir, e);
    loop {
        if let Some(status) = child.try_wait().map_err(lost)? {
            return Ok(runtime::launch::code(status));
        }
        // Without its files a container can only fail: it ends now, and can be started again.
        let dead = daemon.as_deref_mut().map(Child::try_wait).transpose().map_err(lost)?.flatten();
        if let Some(status) = dead {
            state.why = format!("{}; the daemon that showed them has died ({status})", state.why);
            daemon = None;
            if let Some(pid) = pid(state.pid) {
                match kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(e) => return Err(Error::io("end", &container.name, e)),
                }
            }
            continue;
        }
        let signal = signals.wait().map_err(lost)?;
        if sys::signal::is_child(signal) || sys::signal::is_resize(signal) {
            continue;
        }
        if let (Some(pid), Some(signal)) = (pid(state.pid), Signal::from_named_raw(signal)) {
            // It may have ended just now.
            if let Err(e) = kill_process(pid, signal) {
                tracing::debug!(%e, "a signal came too late");
            }
        }
    }
}

pub(crate) fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// The layer of [`PLACES`], made on first use.
pub(crate) fn places(store: &Store) -> Result<PathBuf> {
    let dir = store.root().join("places");
    if dir.join("run").is_dir() {
        return Ok(dir);
    }
    for (name, directory) in PLACES {
        let path = dir.join(name);
        let made = if directory {
            fs::create_dir_all(&path)
        } else {
            fs::File::options().create(true).append(true).open(&path).map(drop)
        };
        made.map_err(|e| Error::io("make", &path, e))?;
    }
    Ok(dir)
}

/// How it runs, from how it was asked to and what its own files say of its user.
fn spec(
    container: &Container,
    store: &Store,
    merged: &Path,
    rootless: bool,
    grouped: bool,
) -> Result<Spec> {
    let config = &container.config;
    let mut known = runtime::user::find(tree::root(merged)?, &config.user)?;
    for group in &config.groups {
        known.user.additional_gids.push(runtime::user::group(tree::root(merged)?, group)?);
    }
    let hostname = match config.hostname.as_str() {
        "" => container.id[..12].to_owned(),
        name => name.to_owned(),
    };
    let root = Root { path: merged.to_owned(), readonly: config.read_only };
    let in_namespace = rootless || store.namespace() == Namespace::User;
    let choices = Choices {
        host_network: config.host_network,
        rootless: in_namespace,
        privileged: config.privileged,
        shm_size: config.shm_size,
        host_pid: config.host_pid,
        host_ipc: config.host_ipc,
        grouped,
    };
    let process = process(container, &known, &hostname)?;
    let mut spec = standard::spec(process, root, hostname, choices);
    spec.linux.sysctl.clone_from(&config.sysctl);
    spec.linux.seccomp = seccomp(config, &spec.process);
    for (file, own) in [("/etc/hosts", &config.hosts), ("/etc/resolv.conf", &config.resolve)] {
        let destination = PathBuf::from(file);
        let source = match own.as_slice() {
            [] if config.host_network && destination.exists() => destination.clone(),
            [] => continue,
            lines => written(container, &destination, lines)?,
        };
        spec.mounts.push(bind_at(&source, &destination, &[]));
    }
    let mut asked: Vec<Mount> = config.volumes.iter().map(bind).collect();
    asked.extend(config.mounts.iter().cloned());
    if config.privileged {
        asked.extend(devices()?);
    }
    // What lies in another one comes after it.
    asked.sort_by_key(|mount| mount.destination.components().count());
    spec.mounts.extend(asked);
    if config.init {
        spec.annotations.insert(INIT.to_owned(), "true".to_owned());
    }
    Ok(spec)
}

/// The filter of system calls, by what its processes may do.
fn seccomp(config: &Config, process: &Process) -> Option<Seccomp> {
    let capabilities = process.capabilities.clone().unwrap_or_default().bounding;
    match &config.seccomp {
        _ if config.privileged => None,
        Filter::Unconfined => None,
        Filter::Standard => Some(runtime::seccomp::standard(&capabilities)),
        Filter::Own(profile) => Some(profile.resolve(&capabilities)),
    }
}

/// A file of the container's own for `destination`; hosts are beside those of this machine's network, if it has that.
fn written(container: &Container, destination: &Path, lines: &[String]) -> Result<PathBuf> {
    let path = container.dir.join(destination.file_name().unwrap_or_default());
    let hosts = destination.ends_with("hosts");
    let mut text = match container.config.host_network {
        true if hosts => {
            fs::read_to_string(destination).map_err(|e| Error::io("read", destination, e))?
        }
        _ if hosts => "127.0.0.1 localhost\n".to_owned(),
        _ => String::new(),
    };
    for line in lines {
        text += line;
        text.push('\n');
    }
    fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
    Ok(path)
}

/// All devices of this machine at their places, but for those that every container has as its own.
fn devices() -> Result<Vec<Mount>> {
    let fail = |e| Error::io("list", "/dev", e);
    let own = ["null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"];
    let mut found = Vec::new();
    for entry in fs::read_dir("/dev").map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let kind = entry.file_type().map_err(fail)?;
        let device = kind.is_block_device() || kind.is_char_device();
        if device && !own.iter().any(|name| entry.file_name() == *name) {
            found.push(bind_at(&entry.path(), &entry.path(), &[]));
        }
    }
    Ok(found)
}

fn bind_at(source: &Path, destination: &Path, options: &[&str]) -> Mount {
    let options = ["rbind", "rprivate"].iter().chain(options);
    Mount {
        destination: destination.to_owned(),
        kind: "bind".to_owned(),
        source: source.to_owned(),
        options: options.map(|option| (*option).to_owned()).collect(),
    }
}

fn bind(volume: &Volume) -> Mount {
    let options: &[&str] = if volume.read_only { &["ro"] } else { &[] };
    bind_at(&volume.source, &volume.destination, options)
}

/// The command with its environment: what every container has, then the image's and the caller's, which win.
fn process(container: &Container, known: &runtime::user::Known, hostname: &str) -> Result<Process> {
    let config = &container.config;
    let mut env = vec![
        format!("PATH={PATH}"),
        format!("HOSTNAME={hostname}"),
        format!("HOME={}", known.home),
    ];
    if config.terminal {
        env.push("TERM=xterm".to_owned());
    }
    for variable in &config.env {
        let name = variable.split('=').next().unwrap_or_default();
        env.retain(|known| known.split('=').next() != Some(name));
        env.push(variable.clone());
    }
    let cwd = if config.cwd.is_empty() { "/" } else { &config.cwd };
    let capabilities = if config.privileged {
        capability::all()
    } else {
        capability::choose(&config.cap_add, &config.cap_drop)?
    };
    Ok(Process {
        terminal: config.terminal,
        user: known.user.clone(),
        args: config.args.clone(),
        env,
        cwd: cwd.to_owned(),
        capabilities: Some(standard::capabilities(capabilities)),
        rlimits: config.ulimits.clone(),
        no_new_privileges: config.no_new_privileges,
    })
}
