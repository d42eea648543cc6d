//! Names of files as they are shown: any bytes, by letters that leave the terminal as it is.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A name with what is no printable letter of UTF-8 escaped: `\xff`, `\n`, `\u{202e}`; a backslash doubled, so that
/// different names are shown differently.
pub fn shown(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\'' | '"' => text.push(letter),
                // What stands over its neighbour is a letter of many languages.
                _ if is_mark(letter) => text.push(letter),
                _ => text.extend(letter.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            write!(text, "\\x{byte:02x}").unwrap_or_default();
        }
    }
    text
}

/// The same for a path; `/` for the root.
pub fn shown_path(path: &Path) -> String {
    format!("/{}", shown(path.as_os_str()))
}

/// A combining mark, which `escape_debug` escapes.
fn is_mark(letter: char) -> bool {
    matches!(letter, '\u{300}'..='\u{36f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_printable_and_no_two_look_alike() {
        let cases: [(&[u8], &str); 7] = [
            (b"plain-1.2_x", "plain-1.2_x"),
            ("größe e\u{301} 日本 'q'".as_bytes(), "größe e\u{301} 日本 'q'"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"a\\xff", "a\\\\xff"),
            (b"line\nfeed", "line\\nfeed"),
            (b"\x1b[2J", "\\u{1b}[2J"),
            ("\u{202e}gpj.exe".as_bytes(), "\\u{202e}gpj.exe"),
        ];
        for (name, want) in cases {
            assert_eq!(shown(OsStr::from_bytes(name)), want);
        }
        assert_eq!(shown_path(Path::new("a/b")), "/a/b");
    }
}
