//! How the values of flags are read that `create` and `run` have in common with Docker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use containers::container::{Filter, Volume};
use runtime::seccomp::Profile;
use runtime::spec::{Mount, ProcessLimit};

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
pub fn amount(text: &str) -> Result<u64, String> {
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

/// A volume at `destination` that gets its name, and its place, from the store.
pub fn unnamed(destination: &str, read_only: bool) -> Volume {
    let destination = destination.into();
    Volume { name: None, anonymous: true, source: PathBuf::new(), destination, read_only }
}

/// `SOURCE:DESTINATION[:OPTIONS]`, or a destination alone.
pub fn volume(text: &str) -> anyhow::Result<Volume> {
    if text.starts_with('/') && !text.contains(':') {
        return Ok(unnamed(text, false));
    }
    let mut parts = text.splitn(3, ':');
    let (source, destination) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    volume_at(text, source, destination, parts.next().unwrap_or(""))
}

fn volume_at(text: &str, source: &str, destination: &str, options: &str) -> anyhow::Result<Volume> {
    if source.is_empty() || !destination.starts_with('/') {
        bail!("volume {text:?} is not SOURCE:DESTINATION[:ro], with an absolute destination");
    }
    let mut read_only = false;
    for option in options.split([',', ':']) {
        match option {
            "ro" => read_only = true,
            "rw" | "z" | "Z" | "" => {}
            other => bail!("volume {text:?}: no option {other:?}; there are ro and rw"),
        }
    }
    if !source.contains('/') && source != "." && source != ".." {
        // The store makes it, and says where it is.
        let (name, source) = (Some(source.to_owned()), PathBuf::new());
        let destination = destination.into();
        return Ok(Volume { name, anonymous: false, source, destination, read_only });
    }
    let source = std::fs::canonicalize(source)
        .with_context(|| format!("volume {text:?}: there is no {source:?} here"))?;
    let destination = destination.into();
    Ok(Volume { name: None, anonymous: false, source, destination, read_only })
}

/// A program by its path, or looked for in PATH.
pub fn program(name: PathBuf) -> anyhow::Result<PathBuf> {
    if name.components().count() > 1 {
        return std::fs::canonicalize(&name).with_context(|| format!("no runtime {name:?}"));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(&name))
        .find(|file| file.is_file())
        .with_context(|| format!("no runtime {name:?} in PATH"))
}

/// The variables of a file: `NAME=value` a line, or `NAME` for the one of here; `#` begins a remark.
pub fn env_file(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path:?}"))?;
    let lines = text.lines().map(str::trim_start);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    variables(&lines.map(str::to_owned).collect::<Vec<_>>())
        .with_context(|| format!("in the file {path:?}"))
}

/// `NAME=value`, or a name alone.
pub fn labels(given: &[String]) -> BTreeMap<String, String> {
    let split = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    given.iter().map(split).collect()
}

/// `DIR[:OPTIONS]`, as of --tmpfs.
pub fn tmpfs(text: &str) -> anyhow::Result<Mount> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    if !destination.starts_with('/') {
        bail!("tmpfs {text:?} is not DIR[:OPTIONS], with an absolute directory");
    }
    let options = options.split(',').filter(|option| !option.is_empty());
    Ok(tmpfs_at(destination, options.map(str::to_owned)))
}

fn tmpfs_at(destination: &str, options: impl Iterator<Item = String>) -> Mount {
    let standard = ["nosuid", "nodev", "noexec"].map(str::to_owned);
    Mount {
        destination: destination.into(),
        kind: "tmpfs".to_owned(),
        source: "tmpfs".into(),
        options: standard.into_iter().chain(options).collect(),
    }
}

/// What --mount adds.
#[derive(Debug, PartialEq)]
pub enum Added {
    Volume(Volume),
    Mount(Mount),
}

/// `type=bind,source=…,target=…[,readonly]` or `type=tmpfs,target=…[,tmpfs-size=…][,tmpfs-mode=…]`.
pub fn mount(text: &str) -> anyhow::Result<Added> {
    let mut kind = "volume";
    let (mut source, mut destination) = (None, None);
    let mut read_only = false;
    let mut options = Vec::new();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        match key {
            "type" => kind = value,
            "source" | "src" => source = Some(value),
            "target" | "destination" | "dst" => destination = Some(value),
            "readonly" | "ro" => read_only = !matches!(value, "false" | "0"),
            "tmpfs-size" => {
                let bytes = amount(value).map_err(|why| anyhow!("mount {text:?}: {why}"))?;
                options.push(format!("size={bytes}"));
            }
            "tmpfs-mode" => options.push(format!("mode={value}")),
            // Nothing that is mounted in a container shows outside, nor the reverse.
            "bind-propagation" if matches!(value, "private" | "rprivate") => {}
            _ => bail!("mount {text:?}: no {field:?}; see strata run --help"),
        }
    }
    let destination = destination.filter(|path| path.starts_with('/'));
    let destination =
        destination.with_context(|| format!("mount {text:?} has no absolute target"))?;
    match (kind, source) {
        ("bind", Some(source)) => {
            let here = if source.contains('/') { source.to_owned() } else { format!("./{source}") };
            let access = if read_only { "ro" } else { "rw" };
            volume_at(text, &here, destination, access).map(Added::Volume)
        }
        ("bind", None) => bail!("mount {text:?} has no source"),
        ("tmpfs", None) => {
            options.extend(read_only.then(|| "ro".to_owned()));
            Ok(Added::Mount(tmpfs_at(destination, options.into_iter())))
        }
        ("volume", Some(name)) if !name.contains('/') => {
            let access = if read_only { "ro" } else { "rw" };
            volume_at(text, name, destination, access).map(Added::Volume)
        }
        ("volume", None) => Ok(Added::Volume(unnamed(destination, read_only))),
        ("volume", _) => {
            bail!("mount {text:?}: a volume has a name as source; a path is type=bind")
        }
        ("tmpfs", Some(_)) => bail!("mount {text:?}: a tmpfs has no source"),
        _ => bail!("mount {text:?}: there are type=bind, type=volume and type=tmpfs"),
    }
}

/// `PATH[:PATH_INSIDE[:rwm]]`.
pub fn device(text: &str) -> anyhow::Result<Mount> {
    let mut parts = text.split(':');
    let source = parts.next().unwrap_or_default();
    let inside = parts.next().filter(|part| part.starts_with('/')).unwrap_or(source);
    if !source.starts_with('/') || !Path::new(source).exists() {
        bail!("device {text:?}: there is no {source:?} here");
    }
    Ok(Mount {
        destination: inside.into(),
        kind: "bind".to_owned(),
        source: source.into(),
        options: vec!["bind".to_owned()],
    })
}

/// `NAME=SOFT[:HARD]`; -1 is no limit.
pub fn ulimit(text: &str) -> anyhow::Result<ProcessLimit> {
    let wrong = || format!("ulimit {text:?} is not NAME=SOFT[:HARD]");
    let (name, amounts) = text.split_once('=').with_context(wrong)?;
    let (soft, hard) = amounts.split_once(':').unwrap_or((amounts, amounts));
    let number = |text: &str| match text {
        "-1" | "unlimited" => Some(u64::MAX),
        text => text.parse().ok(),
    };
    let (soft, hard) = (number(soft).with_context(wrong)?, number(hard).with_context(wrong)?);
    if soft > hard {
        bail!("ulimit {text:?}: the limit is above what it may be raised to");
    }
    Ok(ProcessLimit { kind: runtime::limits::name(name)?, hard, soft })
}

/// What `options` of --security-opt ask for: whether new privileges are forbidden, and the filter of system calls. What
/// is not done here anyhow may be switched off.
pub fn security(options: &[String]) -> anyhow::Result<(bool, Filter)> {
    let (mut forbidden, mut filter) = (false, Filter::Standard);
    for option in options {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => forbidden = true,
            ("no-new-privileges", "false") => forbidden = false,
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("seccomp", "unconfined") => filter = Filter::Unconfined,
            ("seccomp", "builtin" | "default") => filter = Filter::Standard,
            ("seccomp", file) if !file.is_empty() => {
                filter = Filter::Own(Box::new(Profile::read(Path::new(file))?));
            }
            _ => bail!(
                "no security option {option:?}; there are no-new-privileges and \
                 seccomp=unconfined|FILE"
            ),
        }
    }
    Ok((forbidden, filter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_have_two_paths_and_options() {
        let parsed = volume("/tmp:/data:ro").expect("a volume");
        assert_eq!(parsed.destination, PathBuf::from("/data"));
        assert!(parsed.read_only && !volume("/tmp:/x").expect("a volume").read_only);
        for bad in ["tmp", "/tmp:data", ":/x", "/tmp:/x:fast", "/no/such/place:/x"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        let named = volume("data:/x:ro").expect("a volume");
        assert_eq!((named.name.as_deref(), named.read_only), (Some("data"), true));
    }

    #[test]
    fn mounts_are_binds_and_tmpfs() {
        let bind = mount("type=bind,src=/tmp,dst=/data,readonly").expect("a mount");
        assert_eq!(bind, Added::Volume(volume("/tmp:/data:ro").expect("a volume")));
        let Added::Mount(memory) = mount("type=tmpfs,target=/t,tmpfs-size=1m").expect("a mount")
        else {
            panic!("no tmpfs")
        };
        assert_eq!(memory.options, ["nosuid", "nodev", "noexec", "size=1048576"]);
        assert_eq!(tmpfs("/t:size=5,exec").expect("a tmpfs").options[3..], ["size=5", "exec"]);
        let named = mount("src=data,dst=/x,ro").expect("a mount");
        assert_eq!(named, Added::Volume(volume("data:/x:ro").expect("a volume")));
        for bad in ["type=bind,dst=/x", "src=/v,dst=/x", "type=tmpfs", "type=bind,src=/tmp,dst=x"] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ulimits_have_a_name_and_one_or_two_numbers() {
        let limit = ulimit("nofile=10:20").expect("a limit");
        assert_eq!((limit.kind.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 10, 20));
        assert_eq!(ulimit("core=-1").expect("a limit").hard, u64::MAX);
        for bad in ["nofile", "nofile=x", "files=1", "nofile=3:2"] {
            assert!(ulimit(bad).is_err(), "{bad}");
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
