#!/usr/bin/env python3
"""The browser of layers in a real terminal: `strata explore` under a pty, its screen by pyte.

explore.py STRATA IMAGE CONTAINER FIGURES: FIGURES is what `--json` prints of the image.
explore.py large STRATA IMAGE NAMES"""
import fcntl, json, os, pty, re, select, signal, struct, sys, termios, time
import pyte


class Terminal:
    """A command under a pty, and what its screen shows."""

    def __init__(self, args, columns=120, lines=40, env=None):
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b''
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ['TERM'] = 'xterm-256color'
            os.environ.update(env or {})
            time.sleep(0.1)
            os.execvp(args[0], args)
        self.size(columns, lines)
        self.before = termios.tcgetattr(self.fd)

    def size(self, columns, lines):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack('HHHH', lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def read(self, wait):
        """Takes what comes until nothing comes for so many seconds; false once the other side is closed."""
        while select.select([self.fd], [], [], wait)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.raw += data
            self.stream.feed(data)
        return True

    def text(self):
        return '\n'.join(line.rstrip() for line in self.screen.display)

    def until(self, *wanted, absent=()):
        """Waits until the screen has all of these, and none of those."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            alive = self.read(0.05)
            text = self.text()
            if all(w in text for w in wanted) and not any(a in text for a in absent):
                return text
            if not alive:
                break
        raise SystemExit(f'FAILED: not on the screen: {wanted}, or still there: {absent}\n{self.text()}')

    def keys(self, *keys):
        names = {'up': '\x1b[A', 'down': '\x1b[B', 'right': '\x1b[C', 'left': '\x1b[D', 'enter': '\r', 'tab': '\t', 'esc': '\x1b'}
        for key in keys:
            os.write(self.fd, names.get(key, key).encode())

    def cursor_line(self):
        """The line that is shown reversed."""
        for y in range(self.screen.lines):
            line = self.screen.buffer[y]
            if any(line[x].reverse for x in range(self.screen.columns)):
                return self.screen.display[y].strip()
        return None

    def ended(self, code):
        """It ends with this status, and leaves the terminal as it was."""
        end = time.monotonic() + 30
        while True:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise SystemExit(f'FAILED: it does not end\n{self.text()}')
        got = os.waitstatus_to_exitcode(status)
        check(got == code, f'ended with {got}, not {code}: {self.text()}')
        self.read(0.05)
        check(self.raw.rfind(b'\x1b[?1049l') > self.raw.rfind(b'\x1b[?1049h'), 'the alternate screen stays')
        check(self.raw.rfind(b'\x1b[?25h') > self.raw.rfind(b'\x1b[?25l'), 'the cursor stays hidden')
        check(termios.tcgetattr(self.fd) == self.before, 'the terminal stays raw')
        os.close(self.fd)


def check(true, why):
    if not true:
        raise SystemExit(f'FAILED: {why}')


def human(count):
    if count < 1024:
        return f'{count} B'
    for unit in ['KiB', 'MiB', 'GiB']:
        count /= 1024
        if count < 1024:
            break
    return f'{count:.1f} {unit}'


def browse(strata, image, figures):
    """All that the keys do, on an image whose figures are known."""
    layers = figures['layers']
    t = Terminal([strata, 'explore', image])
    t.until(f'{image}: {len(layers)} layers, {human(figures["bytes"])}', 'all layers merged',
            f'wasted {human(figures["wasted"])}', 'RUN third', 'Files of all layers')
    check('all layers merged' in t.cursor_line(), t.cursor_line())
    # From layer to layer, uppermost first: each with its figures.
    for number, layer in reversed(list(enumerate(layers, 1))):
        t.keys('j')
        names = lambda what: f'{layer[what]["names"]} names, {human(layer[what]["bytes"])}'
        t.until(f'Files of layer {number} ', f'added    {names("added")}', f'changed  {names("changed")}',
                f'deleted  {names("deleted")}', f'hides    {names("hides")}', f'wasted   {names("wasted")}')
    # The lowest layer: what is above it hides.
    t.keys('tab', '+', 'w')
    t.until('▾ opaque/', 'gone (hidden by 3)', 'big (hidden by 2)', 'below (hidden by 3)')
    # The uppermost: marks of each kind.
    t.keys('w', 'tab', 'g', 'down', 'tab', '+')
    text = t.until('Files of layer 3 ', 'twice')
    for line in ['Co', 'D ', 'A ']:
        check(any(f'│{line}' in row for row in text.splitlines()), f'no {line!r} in\n{text}')
    # Only what is wasted, of all layers.
    t.keys('m', 'w', '+')
    t.until('wasted only', 'big', 'gone (deleted by 3)', absent=['plain'])
    t.keys('c')
    t.until('changed only', 'opaque/', 'big', absent=['plain'])
    t.keys('a', '-')
    t.until('plain', absent=['only', 'below'])
    # A search opens the way to what it finds; names that are no text are escaped.
    t.keys('/', 'n', 'o', '\\', 'x')
    t.until('/no\\x_')
    check('no\\xff\\u{1b}' in t.cursor_line(), t.cursor_line())
    t.keys('enter')
    t.until('/deep/er/no\\xff\\u{1b}', '▾ er/')
    t.keys('/', 'n', 'o', 'n', 'e', 'enter')
    t.until('no name has "none" in it')
    # Left closes and goes up; then the layers have the keys.
    t.keys('h', 'h', 'h', 'h', 'h')
    t.until('Tab files')
    # Help, a page, order.
    t.keys('?')
    t.until('Help: any key goes back', 'q, Ctrl-C')
    t.keys('x', 's')
    t.until('by size', absent=['Help:'])
    # Other sizes, also while it runs: one half where there is no room for two.
    t.size(50, 12)
    t.until('Layers', absent=['Files of'])
    t.keys('tab')
    t.until('Files of', absent=['Layers'])
    t.size(20, 4)
    t.until('too small')
    t.size(120, 40)
    t.until('Layers', 'Files of', absent=['too small'])
    t.keys('q')
    t.ended(0)


def endings(strata, image, container):
    """However it ends, the terminal is as it was."""
    t = Terminal([strata, 'explore', image])
    t.until('all layers merged')
    t.keys('\x03')
    t.ended(0)
    for number in [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]:
        t = Terminal([strata, 'explore', image])
        t.until('all layers merged')
        os.kill(t.pid, number)
        t.ended(128 + number)
    # A container that runs: its writable layer is on top.
    t = Terminal([strata, 'explore', container], columns=120, lines=30, env={'NO_COLOR': '1'})
    t.until('the writable layer', '4 layers')
    t.keys('j', 'tab', '+')
    t.until('written', 'Files of layer 4 ')
    check(not re.search(rb'\x1b\[3[0-8][0-9;]*m', t.raw), 'colours in spite of NO_COLOR')
    t.keys('q')
    t.ended(0)


def large(strata, image, names):
    """All directories of a large image opened, and the last of them reached."""
    t = Terminal([strata, 'explore', image])
    t.until('all layers merged')
    t.keys('tab', '+', 'G')
    t.until('Files of all layers', absent=['nothing'])
    t.keys('/', *'never-there', 'enter')
    t.until('no name has "never-there" in it')
    t.keys('tab', 'G')
    t.until('Files of layer 1 ')
    t.keys('q')
    t.ended(0)
    print(f'{image}: {names} names browsed')


if sys.argv[1] == 'large':
    large(*sys.argv[2:5])
else:
    strata, image, container, figures = sys.argv[1:]
    browse(strata, image, json.load(open(figures)))
    endings(strata, image, container)
    print('browsed by keyboard, resized, ended by key and by signal')
