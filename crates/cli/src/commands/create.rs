//! `strata create`: a writable layer over an image, and how it is to run.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use containers::Container;
use containers::container::{Config, Volume};
use containers::view::{Choice, Limit};
use store::Store;
use store::images::Image;

use super::place::Place;

/// Make a container, in milliseconds whatever the image
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata create --name web -v $PWD/site:/srv:ro nginx")]
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
    /// A name; one is made up otherwise
    #[arg(long)]
    name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Show a file or directory of this machine in the container
    #[arg(short, long, value_name = "SOURCE:DESTINATION[:ro]")]
    volume: Vec<String>,
    /// Set a variable; without a value it has that of here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
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
    #[arg(long)]
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
        env.extend(variables(&self.env)?);
        let or_image = |own: &Option<String>, image: String| own.clone().unwrap_or(image);
        let config = Config {
            image: self.image.clone(),
            args,
            env,
            cwd: or_image(&self.workdir, defaults.working_dir),
            user: or_image(&self.user, defaults.user),
            hostname: self.hostname.clone().unwrap_or_default(),
            host_network: self.network == Network::Host,
            read_only: self.read_only,
            volumes: self.volume.iter().map(|text| volume(text)).collect::<Result<_, _>>()?,
            backend: match self.backend {
                Backend::Auto => Choice::Auto,
                Backend::Kernel => Choice::Kernel,
                Backend::Fuse => Choice::Fuse,
            },
            limit: Limit { size: self.size, inodes: self.inodes },
            runtime: self.runtime.clone().map(program).transpose()?,
            terminal,
            init: self.init,
            remove: self.rm,
            stop_signal: self.stop_signal.clone().or(defaults.stop_signal),
            ..Config::default()
        };
        if !config.cwd.is_empty() && !config.cwd.starts_with('/') {
            bail!("the working directory {:?} is not absolute", config.cwd);
        }
        Ok(Container::create(store, &image, self.name.as_deref(), config)?)
    }
}

/// The image of that name; where it says from where, it is pulled if it is not here.
fn image(store: &Store, place: &Place, name: &str) -> anyhow::Result<Image> {
    let transports = ["docker://", "oci:", "oci-archive:", "docker-archive:"];
    if !transports.iter().any(|transport| name.starts_with(transport)) {
        return Ok(store.image(name)?);
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

/// Variables as they were given; those without a value from here, if they are set here.
pub fn variables(given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for variable in given {
        match variable.split_once('=') {
            Some(("", _)) => bail!("a variable without a name: {variable:?}"),
            Some(_) => all.push(variable.clone()),
            None => {
                if let Ok(value) = std::env::var(variable) {
                    all.push(format!("{variable}={value}"));
                }
            }
        }
    }
    Ok(all)
}

/// A count with `k`, `m`, `g` or `t` behind it for powers of 1024, and `b` or `ib` after that.
fn amount(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err("write a number, with k, m, g or t behind it".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number, as 512m or 2g".to_owned())?;
    number.checked_mul(1 << shift).filter(|n| *n > 0).ok_or("out of range".to_owned())
}

fn volume(text: &str) -> anyhow::Result<Volume> {
    let mut parts = text.split(':');
    let (source, destination) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    if source.is_empty() || !destination.starts_with('/') {
        bail!("volume {text:?} is not SOURCE:DESTINATION[:ro], with an absolute destination");
    }
    let mut read_only = false;
    for option in parts.flat_map(|part| part.split(',')) {
        match option {
            "ro" => read_only = true,
            "rw" | "z" | "Z" | "" => {}
            other => bail!("volume {text:?}: no option {other:?}; there are ro and rw"),
        }
    }
    if !source.contains('/') && source != "." && source != ".." {
        bail!("volume {text:?}: there are no named volumes; give a path, as ./{source}");
    }
    let source = std::fs::canonicalize(source)
        .with_context(|| format!("volume {text:?}: there is no {source:?} here"))?;
    Ok(Volume { source, destination: destination.into(), read_only })
}

/// A program by its path, or looked for in PATH.
fn program(name: PathBuf) -> anyhow::Result<PathBuf> {
    if name.components().count() > 1 {
        return std::fs::canonicalize(&name).with_context(|| format!("no runtime {name:?}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(&name))
        .find(|file| file.is_file())
        .with_context(|| format!("no runtime {name:?} in PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_two_paths_and_options() {
        let parsed = volume("/tmp:/data:ro").expect("a volume");
        assert_eq!(parsed.destination, PathBuf::from("/data"));
        assert!(parsed.read_only && !volume("/tmp:/x").expect("a volume").read_only);
        for bad in ["/tmp", "/tmp:data", ":/x", "/tmp:/x:fast", "/no/such/place:/x", "name:/x"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_have_units() {
        for (text, want) in [("7", 7), ("1k", 1024), ("2G", 2 << 30), ("3MiB", 3 << 20)] {
            assert_eq!(amount(text), Ok(want), "{text}");
        }
        for bad in ["", "g", "0", "-1", "1.5g", "9x", "99999999999t"] {
            assert!(amount(bad).is_err(), "{bad}");
        }
    }
}
