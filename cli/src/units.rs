//! Numbers with units as people write and read them: durations, memory, GPUs.

use pf_protocol::limits::SIGNAL_MAX;
use std::fmt::Write;

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error("{0:?} is not a duration like 90s, 15m, 1h30m, 2d, 500ms or 01:30:00")]
    Duration(String),
    /// Not memory.
    #[error("{0:?} is not an amount of memory like 512M, 4G, 1.5G or 2T")]
    Memory(String),
    /// Not GPUs.
    #[error("{0:?} is not a number of GPUs like 1, 2 or 0.25")]
    Gpus(String),
    /// Not node-hours.
    #[error("{0:?} is not a number of node-hours like 100 or 0.5")]
    NodeHours(String),
    /// Not a signal.
    #[error("{0:?} is not a signal like USR1, SIGTERM or 10")]
    Signal(String),
}

fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// A duration in milliseconds: `90s`, `1h30m`, `2d`, `500ms`, `HH:MM:SS`, or plain seconds.
pub fn duration_ms(text: &str) -> Result<u64, UnitError> {
    let error = || UnitError::Duration(text.into());
    if let Some(seconds) = digits(text) {
        return seconds.checked_mul(1_000).ok_or_else(error);
    }
    if text.contains(':') {
        let parts: Option<Vec<u64>> = text.split(':').map(digits).collect();
        return match parts.as_deref() {
            Some(&[h, m, s]) if m < 60 && s < 60 => {
                h.checked_mul(3_600_000).and_then(|ms| ms.checked_add((m * 60 + s) * 1_000)).ok_or_else(error)
            }
            _ => Err(error()),
        };
    }
    let (mut rest, mut total, mut last_unit) = (text, 0u64, u64::MAX);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let count = digits(&rest[..end]).ok_or_else(error)?;
        rest = &rest[end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(error()),
        };
        if unit >= last_unit {
            return Err(error());
        }
        last_unit = unit;
        total = count.checked_mul(unit).and_then(|ms| total.checked_add(ms)).ok_or_else(error)?;
        rest = &rest[unit_end..];
    }
    if last_unit == u64::MAX { Err(error()) } else { Ok(total) }
}

/// Memory in bytes; units are powers of 1024 and must be there, since schedulers disagree about plain numbers.
pub fn memory_bytes(text: &str) -> Result<u64, UnitError> {
    let error = || UnitError::Memory(text.into());
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[number.len()..].to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(error()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let whole = digits(whole).ok_or_else(error)?;
    if part.len() > 3 {
        return Err(error());
    }
    let thousandths = digits(part).ok_or_else(error)? * 10u64.pow(3 - part.len() as u32);
    let scale = 1u64 << unit;
    whole.checked_mul(scale).and_then(|b| b.checked_add(scale / 1_000 * thousandths)).ok_or_else(error)
}

/// GPUs in thousandths.
pub fn gpus_milli(text: &str) -> Result<u32, UnitError> {
    let milli = thousandths(text).and_then(|n| u32::try_from(n).ok());
    milli.ok_or_else(|| UnitError::Gpus(text.into()))
}

/// Node-hours in thousandths; not 0.
pub fn node_hours_milli(text: &str) -> Result<u64, UnitError> {
    thousandths(text).filter(|n| *n > 0).ok_or_else(|| UnitError::NodeHours(text.into()))
}

/// Thousandths of a number like `0.25` or `3`.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if part.len() > 3 {
        return None;
    }
    let part = digits(part)? * 10u64.pow(3 - part.len() as u32);
    digits(whole)?.checked_mul(1_000)?.checked_add(part)
}

/// A signal's number: by name, with or without `SIG`, or as it is.
pub fn signal(text: &str) -> Result<i32, UnitError> {
    let error = || UnitError::Signal(text.into());
    if let Some(number) = digits(text) {
        return i32::try_from(number).ok().filter(|n| (1..=SIGNAL_MAX).contains(n)).ok_or_else(error);
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>().map(|signal| signal as i32).map_err(|_| error())
}

/// A duration for people: `0`, `350 µs`, `12 ms`, `4.2 s`, `3m 20s`, `5h 12m`, `2d 3h`.
#[must_use]
pub fn show_us(us: u64) -> String {
    match us {
        0 => "0".into(),
        1..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        _ => {
            let s = us / 1_000_000;
            match s {
                0..3_600 => format!("{}m {}s", s / 60, s % 60),
                3_600..86_400 => format!("{}h {}m", s / 3_600, s / 60 % 60),
                _ => format!("{}d {}h", s / 86_400, s / 3_600 % 24),
            }
        }
    }
}

/// Bytes for people.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Thousandths without needless zeros: `2`, `0.25`.
#[must_use]
pub fn show_milli(milli: u32) -> String {
    let mut text = (milli / 1_000).to_string();
    if !milli.is_multiple_of(1_000) {
        let _ = write!(text, ".{:03}", milli % 1_000);
        text.truncate(text.trim_end_matches('0').len());
    }
    text
}

/// A UTC date and time of Unix milliseconds: `2026-11-24 06:30:05`. Gregorian, for years after 1970.
#[must_use]
pub fn show_time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days from civil, the other way round (Howard Hinnant's algorithm): years begin in March, eras have 400 of them.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_as_people_write_them() {
        let cases = [
            ("90", 90_000),
            ("90s", 90_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("01:30:00", 5_400_000),
        ];
        for (text, ms) in cases {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for bad in
            ["", "x", "-5", "5x", "1m1h", "1h1h", "1:2", "0:60:0", "1.5h", "99999999999999999999d", "5 s"]
        {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_and_gpus_as_people_write_them() {
        assert_eq!(memory_bytes("512M"), Ok(512 << 20));
        assert_eq!(memory_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(memory_bytes("1.5k"), Ok(1024 + 500));
        assert!(["", "5", "5X", "-1G", "1.2345G", "G", "99999999T"].iter().all(|t| memory_bytes(t).is_err()));
        assert_eq!(gpus_milli("2"), Ok(2_000));
        assert_eq!(gpus_milli("0.25"), Ok(250));
        assert!(["", "x", "-1", "0.0005", "5000000"].iter().all(|t| gpus_milli(t).is_err()));
    }

    #[test]
    fn signals_as_people_write_them() {
        assert_eq!(["USR1", "sigusr1", "SIGTERM", "2"].map(|t| signal(t).unwrap()), [10, 10, 15, 2]);
        assert!(["", "0", "65", "-1", "NOSUCH", "SIG"].iter().all(|t| signal(t).is_err()));
    }

    #[test]
    fn amounts_as_people_read_them() {
        let shown =
            [0, 350, 4_200, 12_000, 4_200_000, 200_000_000, 18_720_000_000, 183_600_000_000].map(show_us);
        assert_eq!(shown, ["0", "350 µs", "4.2 ms", "12 ms", "4.2 s", "3m 20s", "5h 12m", "2d 3h"]);
        assert_eq!([5, 2048, 3 << 30].map(show_bytes), ["5 B", "2.0 KiB", "3.0 GiB"]);
        assert_eq!([2_000, 250, 1_500].map(show_milli), ["2", "0.25", "1.5"]);
        assert_eq!(show_time(1_795_501_805_000), "2026-11-24 06:30:05");
        assert_eq!(show_time(951_782_400_000), "2000-02-29 00:00:00");
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parsers(text in "\\PC{0,12}") {
            let _ = (duration_ms(&text), memory_bytes(&text), gpus_milli(&text), signal(&text));
        }
    }
}
