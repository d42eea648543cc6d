//! `strata create`: a writable layer over an image, and how it is to run.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use containers::Container;
use containers::container::Config;
use containers::view::{Choice, Limit};
use runtime::spec::Mount;
use store::Store;
use store::images::Image;

use super::flags::{self, Added, amount};
use super::limits::{Limits, Shared};
use super::place::Place;

/// Make a container, in milliseconds whatever the image
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:\n  strata create --name web -v $PWD/site:/srv:ro nginx"
)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    what: What,
    /// Have a terminal
    #[arg(short, long)]
    tty: bool,
    /// Of no effect: a start decides whether to attach
    #[arg(short, long, hide = true)]
    interactive: bool,
}

/// What `create` and `run` have in common
#[derive(Debug, clap::Args)]
pub struct What {
    /// Print this
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// A name; one is made up otherwise
    #[arg(long)]
    name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Show a file or directory of this machine in the container, a volume by its name, or one without
    #[arg(short, long, value_name = "[SOURCE:]DESTINATION[:ro]")]
    volume: Vec<String>,
    /// Set a variable; without a value it has that of here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Set the variables that this file lists; --env comes after it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Mount a path of this machine, a volume, or a file system in memory
    #[arg(long, value_name = "type=bind|volume|tmpfs,source=…,target=…[,readonly]")]
    mount: Vec<String>,
    /// Mount a file system in memory
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// What becomes of the image's volumes: each gets one without a name, a file system in memory, or is a directory like
    /// others
    #[arg(long, value_enum, default_value = "anonymous")]
    image_volume: ImageVolume,
    /// Show a device of this machine in the container
    #[arg(long, value_name = "PATH[:PATH_INSIDE]")]
    device: Vec<String>,
    /// Let it do what Docker's containers may not: a capability, or ALL
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_add: Vec<String>,
    /// Don't let it do what Docker's containers may
    #[arg(long, value_name = "CAPABILITY", value_delimiter = ',')]
    cap_drop: Vec<String>,
    /// Keep nothing of this machine from it
    #[arg(long)]
    privileged: bool,
    /// no-new-privileges: set-user-ID programs give nothing; seccomp: which system calls it may make, in Docker's form,
    /// in place of those that Docker allows
    #[arg(long, value_name = "no-new-privileges|seccomp=unconfined|seccomp=FILE")]
    security_opt: Vec<String>,
    /// Be also in this group, by name or number
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// A limit of its processes, as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// How much /dev/shm may hold, 64m otherwise
    #[arg(long, value_name = "BYTES", value_parser = amount)]
    shm_size: Option<u64>,
    /// A note, shown by strata inspect
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Write the id to this file, which must not be there
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    shared: Shared,
    /// Ports need not be published: the network is the machine's
    #[arg(short, long, hide = true)]
    publish: Vec<String>,
    /// Start in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Be this user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Let only volumes be written to
    #[arg(long)]
    read_only: bool,
    /// Host name
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// The machine's network, or none
    #[arg(long, visible_alias = "net", value_enum, default_value = "host")]
    network: Network,
    /// An OCI runtime, as crun or runc; strata starts containers itself otherwise
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// Who shows the layers: the kernel's overlayfs, or strata by FUSE
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// What the writable layer may hold, as 512m or 2g; a write beyond it is ENOSPC
    #[arg(long, value_name = "BYTES", value_parser = amount)]
    size: Option<u64>,
    /// How many files the writable layer may hold
    #[arg(long, value_name = "COUNT", value_parser = amount)]
    inodes: Option<u64>,
    /// Run this in place of the image's entrypoint
    #[arg(long)]
    entrypoint: Option<String>,
    /// Have an init that reaps orphans as first process
    #[arg(long)]
    init: bool,
    /// The signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// How many seconds it then has before it is ended, 10 otherwise
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
    /// An image of the store, or one to pull: docker://HOST/NAME, oci:DIR[:TAG], oci-archive:FILE[:TAG]
    image: String,
    /// The command and its arguments, in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Networks
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    Host,
    None,
}

/// What becomes of an image's volumes
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ImageVolume {
    #[value(alias = "bind")]
    Anonymous,
    Tmpfs,
    Ignore,
}

/// Who shows the layers
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Backend {
    Auto,
    Kernel,
    Fuse,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.place.open()?;
    let container = args.what.create(&store, &args.place, args.tty)?;
    writeln!(std::io::stdout(), "{}", container.id)?;
    Ok(ExitCode::SUCCESS)
}

impl What {
    /// Makes the container.
    pub fn create(
        &self,
        store: &Store,
        place: &Place,
        terminal: bool,
    ) -> anyhow::Result<Container> {
        if let Some(port) = self.publish.first() {
            bail!(
                "{port} can't be published: the network is the machine's, on which the container listens itself"
            );
        }
        self.shared.check()?;
        let resources = self.limits.resources()?;
        let id_file = self.cidfile.as_deref().map(new_file).transpose()?;
        let image = image(store, place, &self.image)?;
        let defaults = image.parsed()?.config;
        let mut args = match &self.entrypoint {
            Some(program) if program.is_empty() => Vec::new(),
            Some(program) => vec![program.clone()],
            None => defaults.entrypoint.unwrap_or_default(),
        };
        if !self.command.is_empty() {
            args.extend(self.command.iter().cloned());
        } else if self.entrypoint.is_none() {
            args.extend(defaults.cmd.unwrap_or_default());
        }
        if args.is_empty() {
            bail!("the image {} has no command: give one after its name", self.image);
        }
        if let Some(signal) = &self.stop_signal {
            containers::control::signal(signal)?;
        }
        let mut env = defaults.env.unwrap_or_default();
        for file in &self.env_file {
            env.extend(flags::env_file(file)?);
        }
        env.extend(flags::variables(&self.env)?);
        runtime::capability::choose(&self.cap_add, &self.cap_drop)?;
        let all = |parse: fn(&str) -> anyhow::Result<Mount>, given: &[String]| {
            given.iter().map(|text| parse(text)).collect::<anyhow::Result<Vec<_>>>()
        };
        let mut mounts = all(flags::tmpfs, &self.tmpfs)?;
        mounts.extend(all(flags::device, &self.device)?);
        let volumes = self.volume.iter().map(|text| flags::volume(text));
        let mut volumes = volumes.collect::<anyhow::Result<Vec<_>>>()?;
        for text in &self.mount {
            match flags::mount(text)? {
                Added::Volume(volume) => volumes.push(volume),
                Added::Mount(mount) => mounts.push(mount),
            }
        }
        let declared = defaults.volumes.unwrap_or_default().into_keys();
        for path in declared.filter(|path| path.starts_with('/')) {
            let taken = volumes.iter().any(|volume| volume.destination == Path::new(&path))
                || mounts.iter().any(|mount| mount.destination == Path::new(&path));
            match self.image_volume {
                _ if taken => {}
                ImageVolume::Anonymous => volumes.push(flags::unnamed(&path, false)),
                ImageVolume::Tmpfs => mounts.push(flags::tmpfs(&path)?),
                ImageVolume::Ignore => {}
            }
        }
        for volume in &mut volumes {
            if let Some(name) = &volume.name {
                volume.source = containers::volumes::create(store, name)?;
            } else if volume.anonymous {
                containers::volumes::name(store, volume)?;
            }
        }
        let mut labels = defaults.labels.unwrap_or_default();
        labels.extend(flags::labels(&self.label));
        let host_network = self.network == Network::Host;
        let (no_new_privileges, seccomp) = flags::security(&self.security_opt)?;
        let (host_pid, host_ipc) = self.shared.host();
        let or_image = |own: &Option<String>, image: String| own.clone().unwrap_or(image);
        let config = Config {
            image: self.image.clone(),
            args,
            env,
            cwd: or_image(&self.workdir, defaults.working_dir),
            user: or_image(&self.user, defaults.user),
            hostname: self.hostname.clone().unwrap_or_default(),
            host_network,
            host_pid,
            host_ipc,
            resources,
            cgroups: self.limits.groups(),
            sysctl: self.shared.sysctl(host_network)?,
            hosts: self.shared.hosts()?,
            resolve: self.shared.resolve()?,
            read_only: self.read_only,
            volumes,
            mounts,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            privileged: self.privileged,
            no_new_privileges,
            seccomp,
            groups: self.group_add.clone(),
            ulimits: self
                .ulimit
                .iter()
                .map(|text| flags::ulimit(text))
                .collect::<Result<_, _>>()?,
            shm_size: self.shm_size,
            labels,
            backend: match self.backend {
                Backend::Auto => Choice::Auto,
                Backend::Kernel => Choice::Kernel,
                Backend::Fuse => Choice::Fuse,
            },
            limit: Limit { size: self.size, inodes: self.inodes },
            runtime: self.runtime.clone().map(flags::program).transpose()?,
            terminal,
            init: self.init,
            remove: self.rm,
            stop_signal: self.stop_signal.clone().or(defaults.stop_signal),
            stop_timeout: self.stop_timeout,
            ..Config::default()
        };
        if !config.cwd.is_empty() && !config.cwd.starts_with('/') {
            bail!("the working directory {:?} is not absolute", config.cwd);
        }
        let container = Container::create(store, &image, self.name.as_deref(), config)?;
        if let Some(mut file) = id_file {
            file.write_all(container.id.as_bytes())
                .context("cannot write the file of --cidfile")?;
        }
        Ok(container)
    }
}

fn new_file(path: &Path) -> anyhow::Result<File> {
    File::create_new(path).with_context(|| format!("cannot make {path:?} for the id"))
}

/// The image of that name; where it says from where, it is pulled if it is not here.
fn image(store: &Store, place: &Place, name: &str) -> anyhow::Result<Image> {
    let transports = ["docker://", "oci:", "oci-archive:", "docker-archive:"];
    if !transports.iter().any(|transport| name.starts_with(transport)) {
        return store.image(name).map_err(|error| match &error {
            store::Error::NoImage { near, .. } if near.is_empty() => {
                anyhow::anyhow!("{error}; strata pull {name} brings it")
            }
            _ => error.into(),
        });
    }
    // By a process of its own: one without privileges that pulls becomes root of a user namespace.
    let mut command = Command::new("/proc/self/exe");
    command.args(["pull", "--quiet", name]).env("STRATA_ROOT", place.root()?);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start ourselves")?;
    let said = String::from_utf8(output.stdout).context("no id of an image")?;
    let ids: Vec<&str> = said.lines().collect();
    match ids.as_slice() {
        _ if !output.status.success() => bail!("there is no image to run"),
        [id] => Ok(store.image(id)?),
        ids => bail!("{name} has {} images: say which, with its tag", ids.len()),
    }
}
