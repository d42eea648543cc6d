//! Texts and numbers of headers.

use std::io;

use super::read::bad;

/// A field up to its NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// A number: octal digits, or base 256 where the first bit is set.
pub(super) fn number(field: &[u8]) -> io::Result<u64> {
    u64::try_from(signed(field)?).or_else(|_| bad("a number is negative that may not be"))
}

pub(super) fn signed(field: &[u8]) -> io::Result<i64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative { byte & 0x7f } else { *byte };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).or_else(|_| bad("a number is larger than 64 bits"));
    }
    let digits = text(field).trim_ascii();
    let mut value: i64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return bad("a number has digits that are not octal");
        }
        value = value.checked_mul(8).map_or_else(|| bad("a number is larger than 64 bits"), Ok)?
            + i64::from(digit - b'0');
    }
    Ok(value)
}

pub(super) fn decimal(text: &[u8]) -> io::Result<u64> {
    let good = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let value = std::str::from_utf8(text).ok().filter(|_| good).and_then(|text| text.parse().ok());
    value.map_or_else(|| bad("a number of a PAX header is none"), Ok)
}

/// Seconds with a fraction; before 1970 the fraction still counts forwards.
pub(super) fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let (negative, rest) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut halves = rest.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(halves.next().unwrap_or(b""))?)
        .or_else(|_| bad("a time is out of range"))?;
    let mut nanoseconds = 0;
    if let Some(fraction) = halves.next() {
        let mut digits = [b'0'; 9];
        let kept = fraction.len().min(9);
        digits[..kept].copy_from_slice(&fraction[..kept]);
        nanoseconds = u32::try_from(decimal(&digits)?).unwrap_or(0);
    }
    Ok(match (negative, nanoseconds) {
        (false, nanoseconds) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, nanoseconds) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_read_as_every_writer_writes_them() {
        let times: [(&[u8], (i64, u32)); 5] = [
            (b"1", (1, 0)),
            (b"1.5", (1, 500_000_000)),
            (b"1.1234567891", (1, 123_456_789)),
            (b"-86400", (-86400, 0)),
            (b"-1.25", (-2, 750_000_000)),
        ];
        for (text, want) in times {
            assert_eq!(time(text).expect("a time"), want, "{text:?}");
        }
        let numbers: [(&[u8], i64); 5] = [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", 258),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ];
        for (field, want) in numbers {
            assert_eq!(signed(field).expect("a number"), want, "{field:?}");
        }
        for field in [b"8\0".as_slice(), b"x", b"-1", b"77777777777777777777777777"] {
            assert!(signed(field).is_err(), "{field:?}");
        }
    }
}
