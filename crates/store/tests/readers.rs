//! What the reader takes, Python's tarfile reads as the same: archives of every form and with every kind of damage, made
//! here. Two readers that see different entries in one archive are how files are hidden from one of them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use store::Digest;
use store::tar::read::{Kind, Reader};

/// Archives that are made.
const ARCHIVES: u64 = 60_000;

/// The same numbers each time (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % below as u64).expect("a small number")
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }

    /// One time in so many.
    fn rarely(&mut self, times: usize) -> bool {
        self.roll(times) == 0
    }
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A header with some of its bytes changed, and the checksum of what it is then.
fn header(dice: &mut Dice, name: &[u8], kind: u8, size: usize, link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let put = |block: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        block[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&mut block, 0, &name[..name.len().min(100)]);
    for (at, value) in [(100, 0o644), (108, 1000), (116, 100)] {
        put(&mut block, at, format!("{value:07o}").as_bytes());
    }
    put(&mut block, 124, format!("{size:011o}").as_bytes());
    put(&mut block, 136, format!("{:011o}", 1_000_000_000 + dice.roll(9999)).as_bytes());
    block[156] = kind;
    put(&mut block, 157, &link[..link.len().min(100)]);
    let magic: &[u8] = dice.one(&[b"ustar\x0000", b"ustar  \0", &[0; 8]]);
    put(&mut block, 257, magic);
    if matches!(kind, b'3' | b'4') {
        put(&mut block, 329, format!("{:07o}", dice.roll(300)).as_bytes());
        put(&mut block, 337, format!("{:07o}", dice.roll(300)).as_bytes());
    }
    if dice.rarely(8) {
        put(&mut block, 345, b"a/prefix");
    }
    if dice.rarely(4) {
        for _ in 0..=dice.roll(3) {
            let fields: [(usize, usize); 10] = [
                (0, 100),
                (100, 8),
                (108, 8),
                (116, 8),
                (124, 12),
                (136, 12),
                (156, 1),
                (157, 100),
                (257, 8),
                (329, 183),
            ];
            let (at, length) = dice.one(&fields);
            block[at + dice.roll(length)] = dice.one(&[
                0, b' ', b'/', b'.', b'-', b'+', b'_', b'0', b'1', b'7', b'8', 0x80, 0xff, b'x',
                b'S', b'g',
            ]);
        }
    }
    if block[257..263] != *b"ustar\0" {
        // Python takes what other formats have there for the start of the name.
        block[345..500].fill(0);
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn name(dice: &mut Dice) -> Vec<u8> {
    let mut name: Vec<u8> = dice
        .one(&["f", "d/e", "./x", "/abs", "d/", "a/../b", "\u{e9}t\u{e9}", "d//f", "e/."])
        .as_bytes()
        .to_vec();
    match dice.roll(12) {
        0 => name.extend(std::iter::repeat_n(b'n', 90 + dice.roll(200))),
        1 => name.push(0xff),
        2 => name.push(b'/'),
        _ => {}
    }
    name
}

/// Records that say something of the next entry, some of them wrong.
fn records(dice: &mut Dice, size: usize, sparse: bool) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..=dice.roll(3) {
        let text = name(dice);
        let number = dice.one(&[
            "0", "7", "512", "513", "100000", "-1", "1.5", "-1.25", "+3", " 4", "1_0", "", "08",
        ]);
        let (key, value): (&str, Vec<u8>) = match dice.roll(12) {
            0 if !all.windows(11).any(|key| key == b"sparse.name") => ("path", text),
            1 => ("linkpath", text),
            // Python goes astray where a sparse file has one.
            2 if !sparse => {
                ("size", if dice.rarely(3) { number.into() } else { size.to_string().into() })
            }
            3 => ("uid", number.into()),
            4 => ("gid", number.into()),
            5 | 6 => ("mtime", number.into()),
            7 => ("SCHILY.xattr.user.k", text),
            8 => ("comment", text),
            // Beside a path, the last of them counts in Python, and this one in all others.
            9 if !all.windows(5).any(|key| key == b" path") => ("GNU.sparse.name", text),
            10 => (dice.one(&["GNU.sparse.realsize", "GNU.sparse.size"]), number.into()),
            _ => ("GNU.sparse.major", number.into()),
        };
        all.extend(record(key, &value));
    }
    if dice.rarely(10) && !all.is_empty() {
        let at = dice.roll(all.len());
        all[at] = dice.one(b"0 =\n9\0");
    }
    all
}

fn entry(dice: &mut Dice, tar: &mut Vec<u8>) {
    let path = name(dice);
    let kind = dice.one(b"0000\x005123467SgZ");
    let link = if matches!(kind, b'1' | b'2') || dice.rarely(9) { name(dice) } else { Vec::new() };
    let data: Vec<u8> =
        (0..dice.roll(3) * dice.roll(700)).map(|at| b'a' + (at % 23) as u8).collect();
    let mut body = data.clone();
    if matches!(kind, b'5' | b'1' | b'2' | b'3' | b'4' | b'6') && !dice.rarely(6) {
        body.clear();
    }
    if path.len() > 100 || dice.rarely(9) {
        let mut long = path.clone();
        long.push(0);
        tar.extend(header(dice, b"././@LongLink", b'L', long.len(), b""));
        tar.extend(padded(long));
    }
    if link.len() > 100 {
        let mut long = link.clone();
        long.push(0);
        tar.extend(header(dice, b"././@LongLink", b'K', long.len(), b""));
        tar.extend(padded(long));
    }
    if dice.rarely(12) {
        let global = records(dice, body.len(), false);
        tar.extend(header(dice, b"global", b'g', global.len(), b""));
        tar.extend(padded(global));
    }
    let sparse = dice.roll(14);
    let real = body.len() + 1000;
    let mut own = if dice.rarely(2) { records(dice, body.len(), sparse < 3) } else { Vec::new() };
    let number = |number: usize| number.to_string().into_bytes();
    match (kind, sparse) {
        (b'0', 0) => {
            own.extend(record("GNU.sparse.size", &number(real)));
            own.extend(record("GNU.sparse.numblocks", b"1"));
            own.extend(record("GNU.sparse.offset", b"512"));
            own.extend(record("GNU.sparse.numbytes", &number(body.len())));
        }
        (b'0', 1) => {
            own.extend(record("GNU.sparse.size", &number(real)));
            own.extend(record("GNU.sparse.numblocks", b"1"));
            own.extend(record("GNU.sparse.map", format!("512,{}", body.len()).as_bytes()));
        }
        (b'0', 2) => {
            for (key, value) in [("major", b"1"), ("minor", b"0")] {
                own.extend(record(&format!("GNU.sparse.{key}"), value));
            }
            own.extend(record("GNU.sparse.realsize", &number(real)));
            let map = padded(format!("1\n512\n{}\n", body.len()).into_bytes());
            body.splice(0..0, map);
        }
        _ => {}
    }
    if !own.is_empty() {
        tar.extend(header(dice, b"pax", b'x', own.len(), b""));
        tar.extend(padded(own));
    }
    tar.extend(header(dice, &path, kind, body.len(), &link));
    tar.extend(padded(body));
}

fn archive(dice: &mut Dice) -> Vec<u8> {
    let mut tar = Vec::new();
    for _ in 0..=dice.roll(4) {
        entry(dice, &mut tar);
    }
    match dice.roll(20) {
        0 => tar.truncate(dice.roll(tar.len())),
        1 => {
            let at = dice.roll(tar.len() / 512) * 512;
            drop(tar.drain(at..at + 512));
        }
        2 => {
            let at = dice.roll(tar.len() / 512) * 512;
            let block = tar[at..at + 512].to_vec();
            tar.splice(at..at, block);
        }
        _ => {}
    }
    tar.extend([0; 1024]);
    tar
}

/// What our reader reads; none where it refuses the archive.
fn ours(tar: &[u8]) -> Option<Vec<Value>> {
    let mut reader = Reader::new(tar);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry().ok()? {
        let mut stored = Vec::new();
        loop {
            let data = reader.data().ok()?;
            if data.is_empty() {
                break;
            }
            stored.extend_from_slice(data);
            let count = data.len();
            reader.consume(count);
        }
        if entry.size > 1 << 20 {
            // As good as any other, but nothing to hold in memory.
            return None;
        }
        let mut data = vec![0; usize::try_from(entry.size).expect("a small file")];
        let mut from = 0;
        for (at, length) in entry.parts.clone().unwrap_or_else(|| vec![(0, entry.size)]) {
            let (at, length) = (usize::try_from(at).ok()?, usize::try_from(length).ok()?);
            data[at..at + length].copy_from_slice(&stored[from..from + length]);
            from += length;
        }
        let path = entry.path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let is_link = matches!(entry.kind, Kind::HardLink | Kind::Symlink);
        let xattrs: BTreeMap<String, String> = entry
            .xattrs
            .iter()
            .map(|(name, value)| (hex::encode(name), hex::encode(value)))
            .collect();
        all.push(json!({
            "path": hex::encode(&entry.path[..path]), "kind": format!("{:?}", entry.kind), "mode": entry.mode,
            "uid": entry.uid, "gid": entry.gid, "link": if is_link { hex::encode(&entry.link) } else { String::new() },
            "device": [entry.device.0, entry.device.1], "size": data.len(), "data": Digest::of(&data).hex(),
            "mtime": entry.mtime.0 as f64 + f64::from(entry.mtime.1) / 1e9, "xattrs": xattrs,
        }));
    }
    reader.finish().ok()?;
    Some(all)
}

/// Times are floating-point numbers there.
fn same(ours: &[Value], theirs: &Value) -> bool {
    let rounded = |value: &Value| {
        let mut value = value.clone();
        value["mtime"] = json!((value["mtime"].as_f64().unwrap_or(f64::NAN) * 1e3).round());
        value
    };
    theirs.as_array().is_some_and(|theirs| {
        ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(a, b)| rounded(a) == rounded(b))
    })
}

#[test]
fn what_is_taken_another_reader_reads_as_the_same() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/entries.py");
    let python =
        Command::new("python3").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut python) = python else {
        assert!(std::env::var_os("STRATA_REQUIRE").is_none(), "needs python3");
        eprintln!("SKIPPED: needs python3");
        return;
    };
    let mut dice = Dice(1);
    let taken: Vec<_> = (0..ARCHIVES)
        .filter_map(|_| {
            let tar = archive(&mut dice);
            ours(&tar).map(|entries| (tar, entries))
        })
        .collect();
    let mut to = python.stdin.take().expect("a pipe");
    let from = BufReader::new(python.stdout.take().expect("a pipe"));
    let mut different = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (tar, _) in &taken {
                let length = u32::try_from(tar.len()).expect("a small archive");
                to.write_all(&length.to_le_bytes())
                    .and_then(|()| to.write_all(tar))
                    .expect("the pipe");
            }
            drop(to);
        });
        let mut lines = from.lines();
        for (tar, entries) in &taken {
            let line = lines.next().expect("an answer").expect("the pipe");
            let theirs: Value = serde_json::from_str(&line).expect("JSON");
            // An archive may end with the data of its last file: umoci's do. Python refuses those.
            let cut = tar.len() % 512 != 0 && line.contains("unexpected end of data");
            if !cut && !same(entries, &theirs) {
                different.push((tar, entries, theirs));
            }
        }
    });
    assert!(python.wait().expect("its end").success());
    assert!(taken.len() > 5000, "only {} archives were taken", taken.len());
    different.sort_by_key(|(tar, ..)| tar.len());
    for (tar, ours, theirs) in different.iter().take(5) {
        let tar = tar.escape_ascii().to_string().replace(r"\x00", "");
        eprintln!("{tar}\nours:   {}\ntheirs: {theirs}", json!(ours));
    }
    assert!(
        different.is_empty(),
        "{} of {} archives are read in two ways",
        different.len(),
        taken.len()
    );
}
