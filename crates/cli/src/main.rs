//! `strata`: one file per subcommand under `commands`.

mod commands;
mod context;
mod interruption;
mod transport;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{FromArgMatches, Parser};

/// The commands, each with what it does: one list for the parser, for [`Strata::only`] and for [`Strata::run`].
macro_rules! commands {
    ($($(#[$attribute:meta])* $name:ident($args:ty) => $run:path,)*) => {
        /// Layered file storage for containers.
        #[derive(Debug, Parser)]
        #[command(
            name = "strata",
            version,
            about,
            arg_required_else_help = true,
            args_override_self = true
        )]
        enum Strata { $($(#[$attribute])* $name($args),)* }

        impl Strata {
            /// A parser that knows the command `name` alone; none for a name of another kind. To tell it of all of them
            /// takes a millisecond, which is much of what a short command takes.
            fn only(name: &str) -> Option<clap::Command> {
                let one = None$(.or_else(|| {
                    let found = name == stringify!($name).to_ascii_lowercase();
                    found.then(|| <$args as clap::Args>::augment_args(clap::Command::new(name.to_owned())))
                }))*?;
                let all = clap::Command::new("strata").version(env!("CARGO_PKG_VERSION"));
                Some(all.args_override_self(true).subcommand_required(true).subcommand(one))
            }

            fn run(&self) -> anyhow::Result<ExitCode> {
                match self { $(Self::$name(args) => $run(args).ended(),)* }
            }
        }
    };
}

commands! {
    Pull(commands::pull::Args) => commands::pull::run,
    Images(commands::images::Args) => commands::images::run,
    Rmi(commands::rmi::Args) => commands::rmi::run,
    Tag(commands::tag::Args) => commands::tag::run,
    History(commands::history::Args) => commands::history::run,
    Layers(commands::layers::Args) => commands::layers::run,
    Push(commands::push::Args) => commands::push::run,
    Save(commands::save::Args) => commands::save::run,
    Load(commands::load::Args) => commands::load::run,
    Df(commands::df::Args) => commands::df::run,
    #[command(visible_alias = "prune")]
    Gc(commands::gc::Args) => commands::gc::run,
    Check(commands::check::Args) => commands::check::run,
    Completions(commands::completions::Args) => commands::completions::run,
    Man(commands::man::Args) => commands::man::run,
    Commit(commands::commit::Args) => commands::commit::run,
    Cp(commands::cp::Args) => commands::cp::run,
    Create(commands::create::Args) => commands::create::run,
    Demo(commands::demo::Args) => commands::demo::run,
    Diff(commands::diff::Args) => commands::diff::run,
    Doctor(commands::doctor::Args) => commands::doctor::run,
    Exec(commands::exec::Args) => commands::exec::run,
    Explore(commands::explore::Args) => commands::explore::run,
    Export(commands::export::Args) => commands::export::run,
    Info(commands::info::Args) => commands::info::run,
    Inspect(commands::inspect::Args) => commands::inspect::run,
    Install(commands::install::Args) => commands::install::run,
    Kill(commands::stop::KillArgs) => commands::stop::kill,
    Logs(commands::logs::Args) => commands::logs::run,
    Materialize(commands::materialize::Args) => commands::materialize::run,
    Mount(commands::mount::Args) => commands::mount::run,
    Ps(commands::ps::Args) => commands::ps::run,
    Rename(commands::rm::RenameArgs) => commands::rm::rename,
    Rm(commands::rm::Args) => commands::rm::run,
    Rollback(commands::snapshot::RollbackArgs) => commands::snapshot::rollback,
    Run(commands::run::Args) => commands::run::run,
    Snapshot(commands::snapshot::Args) => commands::snapshot::run,
    Snapshotter(commands::snapshotter::Args) => commands::snapshotter::run,
    Start(commands::start::Args) => commands::start::run,
    Stop(commands::stop::Args) => commands::stop::run,
    Try(commands::try_::Args) => commands::try_::run,
    #[command(visible_alias = "unmount")]
    Umount(commands::mount::UnmountArgs) => commands::mount::unmount,
    Volume(commands::volume::Args) => commands::volume::run,
    Wait(commands::stop::WaitArgs) => commands::stop::wait,
}

/// How a command ends: with a status of its own, or with that of success.
trait Ended {
    fn ended(self) -> anyhow::Result<ExitCode>;
}

impl Ended for anyhow::Result<()> {
    fn ended(self) -> anyhow::Result<ExitCode> {
        self.map(|()| ExitCode::SUCCESS)
    }
}

impl Ended for anyhow::Result<ExitCode> {
    fn ended(self) -> anyhow::Result<ExitCode> {
        self
    }
}

impl Strata {
    fn read(args: Vec<OsString>) -> Self {
        let only = args.get(1).and_then(|name| Self::only(name.to_str()?));
        let Some(only) = only else { return Self::parse_from(args) };
        let read = Self::from_arg_matches(&only.get_matches_from(args));
        read.unwrap_or_else(|error| error.exit())
    }
}

/// What this program is executed for by itself.
fn by_name(args: &[OsString]) -> Option<ExitCode> {
    let stages = [
        commands::launch::by_name,
        commands::start::by_name,
        commands::exec::by_name,
        commands::try_::by_name,
    ];
    stages.into_iter().find_map(|stage| stage(args))
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(code) = by_name(&args) {
        return code;
    }
    let parsed = match commands::mount::by_name(&args) {
        Some(Ok(args)) => Strata::read(args),
        Some(Err(code)) => return code,
        None => Strata::read(args),
    };
    // As Docker and podman have it: what the command ends with is 124 and below.
    let failure =
        if matches!(parsed, Strata::Run(_)) { ExitCode::from(125) } else { ExitCode::FAILURE };
    let result = parsed.run();
    match result {
        Ok(code) => code,
        // Whoever read the output has heard enough.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("strata: {}", sentence(&e));
            let interrupted = e.downcast_ref::<interruption::Interrupted>();
            interrupted.map_or(failure, interruption::Interrupted::code)
        }
    }
}

/// An error with its reasons, each said once: some say their own reason already.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for reason in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|reason| {
        let io = reason.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let json =
            reason.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn a_command_is_the_same_alone() {
        let all = super::Strata::command().args_override_self(true);
        for command in all.get_subcommands().map(clap::Command::get_name) {
            let help = |all: clap::Command| {
                let read = all.try_get_matches_from(["strata", command, "--help"]);
                read.expect_err("help is told as an error").to_string()
            };
            let only = super::Strata::only(command).expect("a name of a command is known");
            assert_eq!(help(only), help(all.clone()), "{command}");
        }
        assert!(super::Strata::only("nothing").is_none());
    }

    #[test]
    fn every_command_says_what_it_does_and_shows_how_it_is_used() {
        let all = super::Strata::command();
        all.clone().debug_assert();
        let mut wrong = Vec::new();
        for command in all.get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} does not say what it does");
            let long = command.get_after_long_help().or_else(|| command.get_after_help());
            let help = long.map(ToString::to_string).unwrap_or_default();
            let shown = help.lines().filter(|line| line.contains("strata ")).count();
            if !help.contains("Example") || shown == 0 {
                wrong.push(format!("{name} shows no example: {help:?}"));
            }
            // Each is understood.
            for line in help.lines().filter_map(|line| line.strip_prefix("  strata ")) {
                // What follows is the shell's, or says what it does.
                let ends = [" > ", "; ", "  "].iter().filter_map(|end| line.find(end));
                let line = &line[..ends.min().unwrap_or(line.len())];
                let words = line.split_whitespace();
                let words = std::iter::once("strata").chain(words).collect::<Vec<_>>();
                if !line.contains(['\'', '"', '|', '$', '…']) {
                    let read = all.clone().try_get_matches_from(&words);
                    wrong.extend(read.err().map(|error| format!("{line:?}: {error}")));
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
