#!/usr/bin/env python3
"""docs.py check ROOT: every page is in docs/SUMMARY.md, and every link of every page leads somewhere.
docs.py run PAGE: runs the `console` blocks of a page in one shell: each command succeeds, and prints what the page says,
where `…` stands for anything, and for any lines where it has a line for itself."""
import os, pathlib, re, subprocess, sys, urllib.parse


def without_code(text):
    return re.sub(r'`[^`\n]*`', '', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M))


def anchor(heading):
    """As mdBook and GitHub make one of a heading."""
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).strip().lower()
    return ''.join('-' if c == ' ' else c for c in plain if c.isalnum() or c in ' -_')


def anchors(path):
    text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.S | re.M)
    return {anchor(line) for line in re.findall(r'^#+ +(.*)$', text, flags=re.M)}


def check(root):
    wrong = []
    docs = root / 'docs'
    listed = subprocess.run(['git', '-C', root, 'ls-files', '-z', '--cached', '--others', '--exclude-standard', '*.md'],
                            check=True, capture_output=True, text=True).stdout
    pages = [root / name for name in listed.split('\0') if name and (root / name).exists()]
    summary = docs / 'SUMMARY.md'
    named = [docs / target for target in re.findall(r'\]\(([^)#]+)\)', summary.read_text())]
    for page in {p for p in named if named.count(p) > 1}:
        wrong.append(f'{summary}: {page} is there twice')
    for page in pages:
        if docs in page.parents and page != summary and page not in named:
            wrong.append(f'{page} is not in {summary}')
    links = 0
    for page in pages:
        for target in re.findall(r'\]\(<?([^)>\s]+)>?(?: "[^"]*")?\)', without_code(page.read_text())):
            if re.match(r'[a-z+]+:', target):
                continue
            links += 1
            path, _, part = target.partition('#')
            at = (page.parent / urllib.parse.unquote(path)).resolve() if path else page
            if not at.exists():
                wrong.append(f'{page}: {target} leads nowhere')
            elif docs in page.parents and docs not in at.parents and at != docs:
                wrong.append(f'{page}: {target} leads out of the book; name the path as code')
            elif part and part not in anchors(at):
                wrong.append(f'{page}: {target}: no such heading')
    if wrong:
        raise SystemExit('FAILED:\n' + '\n'.join(wrong))
    print(f'{len(pages)} pages, {len(named)} in the summary, {links} links')


def fits(wanted, got):
    """Whether lines are those of the page."""
    parts = []
    for line in wanted:
        if line == '…':
            parts.append(r'(?:[^\n]*\n)*')
        else:
            # Columns are as wide as what is in them.
            words = [r'[^\n]*'.join(map(re.escape, word.split('…'))) for word in line.split()]
            parts.append(r' *' + r' +'.join(words) + r' *\n')
    return re.fullmatch(''.join(parts), ''.join(line + '\n' for line in got)) is not None


def run(page):
    blocks = re.findall(r'^```console\n(.*?)^```', page.read_text(), flags=re.S | re.M)
    shell = subprocess.Popen(['bash'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    count = 0
    for block in blocks:
        steps = []
        for line in block.splitlines():
            if line.startswith('$ '):
                steps.append((line[2:], []))
            elif line.startswith('> '):
                steps[-1] = (steps[-1][0] + '\n' + line[2:], steps[-1][1])
            else:
                steps[-1][1].append(line)
        for command, wanted in steps:
            count += 1
            end = f'--end-{count}--'
            # What it reads is nothing: the shell reads the commands.
            shell.stdin.write(f'{{ {command}\n}} </dev/null\ndocs_status=$?; echo; echo {end} $docs_status\n'.encode())
            shell.stdin.flush()
            got = []
            while True:
                line = shell.stdout.readline().decode(errors='replace')
                if not line:
                    raise SystemExit(f'FAILED: {page}: the shell ended at: {command}')
                if line.startswith(end):
                    break
                got.append(line.rstrip('\n'))
            # The empty line before the end mark, or that of a last line without an end.
            if got and got[-1] == '':
                got.pop()
            if line.split()[1] != '0':
                raise SystemExit(f'FAILED: {page}: {command}\nended with {line.split()[1]}:\n' + '\n'.join(got))
            if os.environ.get('DOCS_SHOW'):
                print(f'$ {command}', *got, sep='\n')
            if not fits(wanted, got):
                raise SystemExit(f'FAILED: {page}: {command}\nprints:\n' + '\n'.join(got) + '\nand not:\n' + '\n'.join(wanted))
    shell.stdin.close()
    shell.wait()
    print(f'{count} commands of {page} do what it says')


if sys.argv[1] == 'check':
    check(pathlib.Path(sys.argv[2]).resolve())
else:
    run(pathlib.Path(sys.argv[2]))
