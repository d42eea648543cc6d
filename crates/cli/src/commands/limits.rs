//! The flags of `create` and `run` that limit what a container may use, and that share the machine's own with it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use containers::container::Groups;
use runtime::cgroup::Group;
use runtime::spec::{Cpu, Memory, Pids, Resources};

use super::flags::amount;

/// What the processes of a container may use together
#[derive(Debug, clap::Args)]
pub struct Limits {
    /// How much memory its processes may use together, as 512m or 2g; beyond it one of them is killed
    #[arg(short, long, value_name = "BYTES", value_parser = amount)]
    memory: Option<u64>,
    /// How much memory and swap together, twice --memory otherwise; -1 is no limit
    #[arg(long, value_name = "BYTES", requires = "memory", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// How many processors' time they may use, as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<f64>,
    /// Their share of the processors where others want them too; 1024 is what everybody has
    #[arg(short, long, value_name = "SHARES")]
    cpu_shares: Option<u64>,
    /// The processors that they run on, as 0-2,5
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// How many processes and threads there may be; -1 is no limit
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Have a control group where a limit needs it, always, or never
    #[arg(long, value_enum, default_value = "auto")]
    cgroups: Cgroups,
}

/// When there is a control group
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cgroups {
    Auto,
    Enabled,
    Disabled,
}

impl Limits {
    /// When there is a control group.
    pub fn groups(&self) -> Groups {
        match self.cgroups {
            Cgroups::Auto => Groups::Auto,
            Cgroups::Enabled => Groups::Enabled,
            Cgroups::Disabled => Groups::Disabled,
        }
    }

    /// The limits; those that can't be kept here are refused.
    pub fn resources(&self) -> anyhow::Result<Resources> {
        let memory = self.memory.map(|limit| {
            let limit = i64::try_from(limit).context("--memory is out of range")?;
            let swap = self.memory_swap.as_deref().map(|text| swap(text, limit)).transpose()?;
            anyhow::Ok(Memory { limit: Some(limit), swap })
        });
        let cpu = Cpu {
            shares: self.cpu_shares.filter(|shares| *shares > 0),
            quota: self.cpus.map(quota).transpose()?.flatten(),
            cpus: self.cpuset_cpus.clone().filter(|list| !list.is_empty()),
            ..Cpu::default()
        };
        let cpu = Cpu { period: cpu.quota.map(|_| PERIOD), ..cpu };
        let resources = Resources {
            memory: memory.transpose()?,
            cpu: Some(cpu).filter(|cpu| *cpu != Cpu::default()),
            // As podman has it, none is no limit.
            pids: self.pids_limit.filter(|limit| *limit > 0).map(|limit| Pids { limit }),
        };
        let limited = !resources.controllers().is_empty();
        if self.cgroups == Cgroups::Disabled {
            if limited {
                bail!("limits need a control group, which --cgroups=disabled forbids");
            }
        } else if limited || self.cgroups == Cgroups::Enabled {
            Group::plan("new", &resources)?;
        }
        Ok(resources)
    }
}

/// Microseconds, in which a limit of processors' time is kept.
const PERIOD: u64 = 100_000;

fn quota(cpus: f64) -> anyhow::Result<Option<i64>> {
    if cpus == 0.0 {
        return Ok(None);
    }
    // Less than a millisecond of a period is no quota to the kernel.
    if !(0.01..=1e6).contains(&cpus) {
        bail!("--cpus {cpus} is no number of processors: 0.01 is the least");
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is below 10^11")]
    #[expect(clippy::cast_precision_loss, reason = "it is 10^5")]
    Ok(Some((cpus * PERIOD as f64).round() as i64))
}

fn swap(text: &str, memory: i64) -> anyhow::Result<i64> {
    if text == "-1" {
        return Ok(-1);
    }
    let both = amount(text).ok().and_then(|bytes| i64::try_from(bytes).ok());
    let both = both.with_context(|| format!("--memory-swap {text:?} is no size, and not -1"))?;
    if both < memory {
        bail!("--memory-swap is memory and swap together: it can't be below --memory");
    }
    Ok(both)
}

/// What of the machine a container shares, and what of it it has otherwise
#[derive(Debug, clap::Args)]
pub struct Shared {
    /// See the machine's processes, or only its own
    #[arg(long, value_enum, default_value = "private")]
    pid: Space,
    /// Have the machine's shared memory and message queues, or its own
    #[arg(long, value_enum, default_value = "private")]
    ipc: Space,
    /// Only host: the users of the container are those of who starts it, and for others those of /etc/subuid
    #[arg(long, value_name = "host", default_value = "host", hide = true)]
    userns: String,
    /// Set something of the kernel for it alone, as net.ipv4.ip_forward=1
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// A line for /etc/hosts; host-gateway stands for this machine
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Who is asked for names, in place of the machine's
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Where names are looked for
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// A setting of /etc/resolv.conf
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Only no: nothing of strata goes on running that could start it again
    #[arg(long, value_name = "POLICY", default_value = "no", hide = true)]
    restart: String,
}

/// Whose namespace it has
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Space {
    Host,
    Private,
}

impl Shared {
    /// Whether it sees the machine's processes, and whether it has its shared memory.
    pub fn host(&self) -> (bool, bool) {
        (self.pid == Space::Host, self.ipc == Space::Host)
    }

    /// What can't be had is refused.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.userns != "host" {
            bail!(
                "--userns {}: the users of a container are the machine's where root starts it; another user's \
                 containers have a user namespace anyhow, with the ids of /etc/subuid",
                self.userns
            );
        }
        if self.restart != "no" {
            bail!(
                "--restart {}: no part of strata goes on running that could start it again; have \
                 a service of the machine's init run `strata start --attach NAME`, which ends as \
                 the container does, and restarts it (systemd: Restart=always)",
                self.restart
            );
        }
        Ok(())
    }

    /// Settings of the kernel; those that would be the machine's are refused.
    pub fn sysctl(&self, host_network: bool) -> anyhow::Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for setting in &self.sysctl {
            let wrong = || format!("--sysctl {setting:?} is not NAME=VALUE");
            let (name, value) = setting.split_once('=').with_context(wrong)?;
            let name = name.replace('/', ".");
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if !name.chars().all(plain) || name.split('.').any(str::is_empty) {
                bail!(wrong());
            }
            let of_ipc = ["kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."]
                .iter()
                .any(|start| name.starts_with(start));
            if name.starts_with("net.") && host_network {
                bail!("--sysctl {name}: the network is the machine's; give --network none too");
            } else if of_ipc && self.ipc == Space::Host {
                bail!("--sysctl {name}: with --ipc host it would be set for the machine");
            } else if !of_ipc && !name.starts_with("net.") {
                bail!("--sysctl {name} would be set for the machine: no namespace has its own");
            }
            all.insert(name, value.to_owned());
        }
        Ok(all)
    }

    /// Lines for /etc/hosts.
    pub fn hosts(&self) -> anyhow::Result<Vec<String>> {
        let line = |given: &String| {
            let wrong = || format!("--add-host {given:?} is not NAME:ADDRESS");
            let (names, address) =
                given.split_once('=').or_else(|| given.split_once(':')).with_context(wrong)?;
            let address = address.trim_start_matches('[').trim_end_matches(']');
            let address = match address {
                "host-gateway" => IpAddr::from([127, 0, 0, 1]),
                address => address.parse().with_context(wrong)?,
            };
            // Podman takes several names for one address.
            let names: Vec<&str> = names.split(';').collect();
            let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '#' | '/');
            if names.iter().any(|name| name.is_empty() || !name.chars().all(plain)) {
                bail!(wrong());
            }
            Ok(format!("{address} {}", names.join(" ")))
        };
        self.add_host.iter().map(line).collect()
    }

    /// Lines of /etc/resolv.conf, where it is not to be the machine's.
    pub fn resolve(&self) -> anyhow::Result<Vec<String>> {
        for word in self.dns_search.iter().chain(&self.dns_option) {
            if word.is_empty() || !word.chars().all(|c| c.is_ascii_graphic()) {
                bail!("{word:?} is no word of /etc/resolv.conf");
            }
        }
        let mut lines: Vec<String> =
            self.dns.iter().map(|address| format!("nameserver {address}")).collect();
        for (key, words) in [("search", &self.dns_search), ("options", &self.dns_option)] {
            if !words.is_empty() {
                lines.push(format!("{key} {}", words.join(" ")));
            }
        }
        if self.dns.is_empty() && !lines.is_empty() {
            let theirs = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            let servers = theirs.lines().filter(|line| line.starts_with("nameserver"));
            lines.splice(0..0, servers.map(str::to_owned));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        shared: Shared,
    }

    fn parsed(flags: &[&str]) -> Flags {
        clap::Parser::parse_from([&["x"], flags].concat())
    }

    #[test]
    fn limits_are_numbers_of_the_specification() {
        let none = parsed(&["--pids-limit=-1", "--cpus=0", "--cpu-shares=0"]);
        assert_eq!(none.limits.resources().expect("none"), Resources::default());
        assert_eq!(quota(1.5).expect("a quota"), Some(150_000));
        assert!(quota(0.001).is_err() && quota(-1.0).is_err() && quota(f64::NAN).is_err());
        assert_eq!(swap("2k", 1024).expect("a size"), 2048);
        assert_eq!(swap("-1", 1024).expect("none"), -1);
        assert!(swap("1k", 2048).is_err() && swap("x", 1).is_err());
        let both = parsed(&["--cgroups=disabled", "--memory=1m"]);
        let said = both.limits.resources().expect_err("refused").to_string();
        assert!(said.contains("--cgroups=disabled forbids"), "{said}");
    }

    #[test]
    fn settings_of_the_machine_are_refused() {
        let set = |setting: &str, host: bool| {
            parsed(&["--sysctl", setting]).shared.sysctl(host).map_err(|e| e.to_string())
        };
        let kept = set("kernel.shmmax=5", true).expect("its own");
        assert_eq!(kept["kernel.shmmax"], "5");
        assert_eq!(
            set("net/ipv4/ip_forward=1", false).expect("its own")["net.ipv4.ip_forward"],
            "1"
        );
        assert!(
            set("net.ipv4.ip_forward=1", true).expect_err("the machine's").contains("none too")
        );
        for bad in ["vm.swappiness=1", "kernel.shmmax", "net..x=1", "net.ipv4.../x=1"] {
            assert!(set(bad, false).is_err(), "{bad}");
        }
        let ipc = parsed(&["--ipc", "host", "--sysctl", "kernel.shmmax=5"]);
        assert!(ipc.shared.sysctl(true).is_err());
    }

    #[test]
    fn hosts_and_resolvers_are_lines() {
        let flags = ["--add-host", "a:1.2.3.4", "--add-host=b=::1", "--add-host=c:host-gateway"];
        let lines = parsed(&flags).shared.hosts().expect("lines");
        assert_eq!(lines, ["1.2.3.4 a", "::1 b", "127.0.0.1 c"]);
        for bad in ["a", "a:b", ":1.2.3.4", "a b:1.2.3.4", "a\nb:1.2.3.4"] {
            assert!(parsed(&["--add-host", bad]).shared.hosts().is_err(), "{bad}");
        }
        let shared =
            parsed(&["--dns=1.1.1.1", "--dns-search=x.org", "--dns-option=ndots:2"]).shared;
        let want = ["nameserver 1.1.1.1", "search x.org", "options ndots:2"];
        assert_eq!(shared.resolve().expect("lines"), want);
        assert!(parsed(&[]).shared.resolve().expect("none").is_empty());
        assert!(parsed(&["--restart", "always"]).shared.check().is_err());
        assert!(parsed(&["--userns", "auto"]).shared.check().is_err());
        assert!(parsed(&["--userns=host"]).shared.check().is_ok());
    }
}
