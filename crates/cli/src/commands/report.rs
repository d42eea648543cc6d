//! How figures are shown.

/// A difference of bytes with its sign, in the unit that leaves one to four digits: `+1.5 MiB`.
pub fn size(growth: i64) -> String {
    let sign = if growth < 0 { '-' } else { '+' };
    format!("{sign}{}", bytes(growth.unsigned_abs()))
}

/// Bytes in the unit that leaves one to four digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_sign_and_a_unit() {
        let cases = [(0, "+0 B"), (1023, "+1023 B"), (-1024, "-1.0 KiB"), (3 << 29, "+1.5 GiB")];
        for (count, want) in cases {
            assert_eq!(size(count), want);
        }
    }
}
