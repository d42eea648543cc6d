//! `strata`: one file per subcommand under `commands`.

mod commands;
mod context;
mod interruption;
mod transport;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Layered file storage for containers.
#[derive(Debug, Parser)]
#[command(
    name = "strata",
    version,
    about,
    arg_required_else_help = true,
    args_override_self = true
)]
enum Strata {
    Pull(commands::pull::Args),
    Images(commands::images::Args),
    Rmi(commands::rmi::Args),
    Tag(commands::tag::Args),
    History(commands::history::Args),
    Layers(commands::layers::Args),
    Push(commands::push::Args),
    Save(commands::save::Args),
    Load(commands::load::Args),
    Df(commands::df::Args),
    #[command(visible_alias = "prune")]
    Gc(commands::gc::Args),
    Check(commands::check::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
    Commit(commands::commit::Args),
    Cp(commands::cp::Args),
    Create(commands::create::Args),
    Demo(commands::demo::Args),
    Diff(commands::diff::Args),
    Doctor(commands::doctor::Args),
    Exec(commands::exec::Args),
    Export(commands::export::Args),
    Info(commands::info::Args),
    Inspect(commands::inspect::Args),
    Install(commands::install::Args),
    Kill(commands::stop::KillArgs),
    Logs(commands::logs::Args),
    Materialize(commands::materialize::Args),
    Mount(commands::mount::Args),
    Ps(commands::ps::Args),
    Rename(commands::rm::RenameArgs),
    Rm(commands::rm::Args),
    Rollback(commands::snapshot::RollbackArgs),
    Run(commands::run::Args),
    Snapshot(commands::snapshot::Args),
    Snapshotter(commands::snapshotter::Args),
    Start(commands::start::Args),
    Stop(commands::stop::Args),
    Try(commands::try_::Args),
    #[command(visible_alias = "unmount")]
    Umount(commands::mount::UnmountArgs),
    Volume(commands::volume::Args),
    Wait(commands::stop::WaitArgs),
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
        Some(Ok(args)) => Strata::parse_from(args),
        Some(Err(code)) => return code,
        None => Strata::parse_from(args),
    };
    // As Docker and podman have it: what the command ends with is 124 and below.
    let failure =
        if matches!(parsed, Strata::Run(_)) { ExitCode::from(125) } else { ExitCode::FAILURE };
    let result = match parsed {
        Strata::Pull(args) => commands::pull::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Images(args) => commands::images::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Rmi(args) => commands::rmi::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Tag(args) => commands::tag::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::History(args) => commands::history::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Layers(args) => commands::layers::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Push(args) => commands::push::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Save(args) => commands::save::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Load(args) => commands::load::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Df(args) => commands::df::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Gc(args) => commands::gc::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Check(args) => commands::check::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Completions(args) => commands::completions::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Man(args) => commands::man::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Commit(args) => commands::commit::run(&args),
        Strata::Cp(args) => commands::cp::run(&args),
        Strata::Create(args) => commands::create::run(&args),
        Strata::Demo(args) => commands::demo::run(&args),
        Strata::Diff(args) => commands::diff::run(&args),
        Strata::Doctor(args) => commands::doctor::run(&args),
        Strata::Exec(args) => commands::exec::run(&args),
        Strata::Export(args) => commands::export::run(&args),
        Strata::Info(args) => commands::info::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Inspect(args) => commands::inspect::run(&args),
        Strata::Install(args) => commands::install::run(&args),
        Strata::Kill(args) => commands::stop::kill(&args),
        Strata::Logs(args) => commands::logs::run(&args),
        Strata::Materialize(args) => commands::materialize::run(&args),
        Strata::Mount(args) => commands::mount::run(&args).map(|()| ExitCode::SUCCESS),
        Strata::Ps(args) => commands::ps::run(&args),
        Strata::Rename(args) => commands::rm::rename(&args),
        Strata::Rm(args) => commands::rm::run(&args),
        Strata::Rollback(args) => commands::snapshot::rollback(&args),
        Strata::Run(args) => commands::run::run(&args),
        Strata::Snapshot(args) => commands::snapshot::run(&args),
        Strata::Snapshotter(args) => commands::snapshotter::run(&args),
        Strata::Start(args) => commands::start::run(&args),
        Strata::Stop(args) => commands::stop::run(&args),
        Strata::Try(args) => commands::try_::run(&args),
        Strata::Wait(args) => commands::stop::wait(&args),
        Strata::Volume(args) => commands::volume::run(&args),
        Strata::Umount(args) => commands::mount::unmount(&args).map(|()| ExitCode::SUCCESS),
    };
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
