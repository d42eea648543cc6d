//! The terminal: taken, and given back as it was, whatever ends this.

use std::io;
use std::process::ExitCode;
use std::sync::mpsc;

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use sys::signal::Ends;

use super::browser::Browser;
use super::draw::draw;
use super::stack::Stack;

/// What there is to react to.
enum Heard {
    Terminal(io::Result<Event>),
    /// A signal that asks to end.
    Signal(i32),
}

/// The terminal while it is ours. A panic gives it back too, before it says what happened.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn take() -> io::Result<Self> {
        Ok(Self(ratatui::try_init()?))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // In a panic the rest is done, and what has been said since is on the screen that was there before.
        let rest = || if std::thread::panicking() { Ok(()) } else { ratatui::try_restore() };
        if let Err(error) = self.0.show_cursor().and_then(|()| rest()) {
            eprintln!("strata: the terminal stays as it is (reset mends it): {error}");
        }
    }
}

/// Shows the stack until a key or a signal ends it.
pub fn show(stack: &Stack) -> io::Result<ExitCode> {
    // Before there is a second thread, which would otherwise end us with the terminal not given back.
    let ends = Ends::hold_unless_ignored()?;
    let mut screen = Screen::take()?;
    let (say, heard) = mpsc::channel();
    let signals = say.clone();
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("signals").spawn(move || {
        // Nobody listens any more only when this process is about to end.
        while let Ok(number) = ends.number()
            && signals.send(Heard::Signal(number)).is_ok()
        {}
    })?;
    thread("keys").spawn(move || {
        loop {
            let read = event::read();
            let failed = read.is_err();
            if say.send(Heard::Terminal(read)).is_err() || failed {
                return;
            }
        }
    })?;
    let mut browser = Browser::new(stack);
    while !browser.ended {
        screen.0.draw(|frame| draw(frame, &mut browser))?;
        // All that waits, and then one picture.
        let mut next = heard.recv().ok();
        while let Some(thing) = next {
            match thing {
                Heard::Terminal(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    browser.key(key);
                }
                Heard::Terminal(read) => drop(read?),
                Heard::Signal(number) => {
                    return Ok(ExitCode::from(u8::try_from(128 + number).unwrap_or(1)));
                }
            }
            next = heard.try_recv().ok();
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

    use super::*;

    /// Says to this very test that it is to draw and to fail.
    const CHILD: &str = "STRATA_TEST_PANICS_ON_SCREEN";

    #[test]
    fn a_panic_gives_the_terminal_back_and_is_seen() {
        if std::env::var_os(CHILD).is_some() {
            let mut screen = Screen::take().expect("the terminal");
            screen.0.draw(|frame| frame.render_widget("drawn", frame.area())).expect("a picture");
            panic!("the reason");
        }
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).expect("a terminal");
        grantpt(&ours).expect("a terminal");
        unlockpt(&ours).expect("a terminal");
        let theirs = ioctl_tiocgptpeer(&ours, flags).expect("its other end");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).expect("a size");
        let before = tcgetattr(&theirs).expect("its modes");
        let end = || Stdio::from(theirs.try_clone().expect("a descriptor"));
        let name = std::thread::current().name().expect("the name of the test").to_owned();
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args([name.as_str(), "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("this program");
        // As long as our own copy is open, its end is no end of what is read.
        let status = child.wait().expect("its end");
        assert!(!status.success());
        let after = tcgetattr(&theirs).expect("its modes");
        assert_eq!(
            (before.local_modes, before.input_modes),
            (after.local_modes, after.input_modes)
        );
        drop(theirs);
        let mut seen = Vec::new();
        let mut ours = std::fs::File::from(ours);
        let mut buffer = [0; 4096];
        // EIO where the other end is closed and all is read.
        while let Ok(count) = ours.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..count]);
        }
        let seen = String::from_utf8_lossy(&seen);
        let at = |what: &str| seen.rfind(what).unwrap_or_else(|| panic!("no {what:?} in {seen:?}"));
        assert!(at("drawn") < at("\x1b[?1049l"), "{seen:?}");
        assert!(at("\x1b[?1049l") < at("the reason"), "{seen:?}");
        assert!(at("\x1b[?25l") < at("\x1b[?25h"), "{seen:?}");
    }
}
