//! Being attached to a process: its standard files, its terminal and its signals are the caller's.

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use sys::signal::Signals;

/// Runs `command` with our standard files, or with a terminal of its own that ours is connected to, and waits for it;
/// its status. What signals us goes on to it.
pub fn attend(mut command: Command, terminal: bool, interactive: bool) -> anyhow::Result<ExitCode> {
    let signals = Signals::hold_all().context("signals can't be held")?;
    // A group of its own: what the keyboard sends comes to it once, through us.
    command.process_group(0);
    if !terminal {
        command.stdin(if interactive { Stdio::inherit() } else { Stdio::null() });
        let mut child = command.spawn().context("cannot start ourselves")?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(ExitCode::from(runtime::launch::code(status)));
            }
            pass_on(signals.wait()?, &child);
        }
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).context("no terminal is to be had")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let raw = Raw::enter()?;
    resize(&ours);
    let mut child = command.spawn().context("cannot start ourselves")?;
    // Its copies of the terminal's end go with it: what we read must end when the child does.
    drop(command);
    let code = bridge(&ours, &signals, &mut child, interactive)?;
    drop(raw);
    Ok(ExitCode::from(code))
}

fn bridge(
    ours: &OwnedFd,
    signals: &Signals,
    child: &mut Child,
    interactive: bool,
) -> anyhow::Result<u8> {
    let stdin = std::io::stdin();
    let mut stdout = std::io::stdout();
    let mut reading = interactive;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut fds = vec![
            PollFd::from_borrowed_fd(ours.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        if reading {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            match rustix::io::read(ours, &mut buffer[..]) {
                Ok(count) if count > 0 => {
                    stdout.write_all(&buffer[..count])?;
                    stdout.flush()?;
                }
                // Nobody has the other end open any more.
                Ok(_) | Err(Errno::IO) => return Ok(runtime::launch::code(child.wait()?)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
        } else if ready[1] {
            let signal = signals.wait()?;
            if sys::signal::is_resize(signal) {
                resize(ours);
            } else if !sys::signal::is_child(signal) {
                pass_on(signal, child);
            }
        }
        if ready.get(2) == Some(&true) {
            let count = rustix::io::read(stdin.as_fd(), &mut buffer[..])?;
            if count == 0 {
                reading = false;
                // The end of what we were given is the end of input there: ^D.
                buffer[0] = 4;
            }
            let mut rest = &buffer[..count.max(1)];
            while !rest.is_empty() {
                match rustix::io::write(ours, rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

fn pass_on(signal: i32, child: &Child) {
    if sys::signal::is_child(signal) || sys::signal::is_resize(signal) {
        return;
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal))
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "a signal came too late");
    }
}

fn resize(ours: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(std::io::stdin())
        && let Err(error) = tcsetwinsize(ours, size)
    {
        tracing::debug!(%error, "the terminal keeps its size");
    }
}

/// Our terminal passes every key on while this lives.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0
            && let Err(error) = tcsetattr(std::io::stdin(), OptionalActions::Now, before)
        {
            eprintln!("strata: the terminal stays raw (reset mends it): {error}");
        }
    }
}
