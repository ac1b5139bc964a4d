//! Durations as people write them: `500ms`, `10s`, `5m`, `1h30m`, `2d`.

/// Longest duration that a file may ask for: ten years, in milliseconds.
pub const DURATION_MS_MAX: u64 = 3_650 * DAY;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// The units, longest first, which is also the order in which they are written.
const UNITS: [(&str, u64); 5] = [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)];

/// The milliseconds that `text` means, or why it means none. A bare number is seconds.
pub fn duration_ms(text: &str) -> Result<u64, &'static str> {
    const SHAPE: &str = "a duration is written like `500ms`, `10s`, `5m`, `1h30m` or `2d`";
    const LONG: &str = "a duration is at most ten years";
    if text.is_empty() {
        return Err(SHAPE);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    // One iterator for the whole text: `find` continues after the last unit, so units in the wrong
    // order or twice are not found.
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            return Err(SHAPE);
        }
        let number: u64 = rest[..digits].parse().map_err(|_| LONG)?;
        rest = &rest[digits..];
        let name = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).len();
        let unit = match (&rest[..name], digits == text.len()) {
            // A number alone is seconds, as other tools of the format read it. `1h30` is not: its
            // unit could be either.
            ("", true) => SECOND,
            (name, _) => units.find(|(unit, _)| *unit == name).ok_or(SHAPE)?.1,
        };
        rest = &rest[name..];
        total = number.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or(LONG)?;
    }
    if total > DURATION_MS_MAX { Err(LONG) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_mean_milliseconds() {
        let read = [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("90", 90_000),
            ("0", 0),
            ("3650d", DURATION_MS_MAX),
        ];
        for (text, ms) in read {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
    }

    #[test]
    fn anything_else_means_nothing() {
        for text in [
            "",
            "s",
            "-1s",
            "1.5h",
            "10 s",
            "10S",
            "1m1h",
            "1s1s",
            "5min",
            "1h30",
            "3651d",
            "99999999999999999999s",
            "18446744073709551615d",
            "1ms1s",
            "é",
        ] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }
}
