//! Durations as schedulers print and take them. Used by every provider.

/// `[D-][[H:]M:]S` as milliseconds.
pub(crate) fn clock_ms(text: &str) -> Option<u64> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let parts: Vec<u64> = clock.split(':').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    if parts.len() > 3 {
        return None;
    }
    let seconds = parts.iter().try_fold(0u64, |sum, part| sum.checked_mul(60)?.checked_add(*part))?;
    let days: u64 = days.parse().ok()?;
    days.checked_mul(86_400)?.checked_add(seconds)?.checked_mul(1_000)
}

/// `HH:MM:SS`, rounded up to a second; more than 99 hours where there are as many.
pub(crate) fn hours_words(ms: u64) -> String {
    let s = ms.div_ceil(1_000);
    format!("{:02}:{:02}:{:02}", s / 3_600, s / 60 % 60, s % 60)
}

/// `[D-]HH:MM:SS`, rounded up to a second.
pub(crate) fn clock_words(ms: u64) -> String {
    let s = ms.div_ceil(1_000);
    let (days, h, m, s) = (s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60);
    let clock = format!("{h:02}:{m:02}:{s:02}");
    if days > 0 { format!("{days}-{clock}") } else { clock }
}

/// Whole minutes, rounded up, at least one.
pub(crate) fn minutes(ms: u64) -> u64 {
    ms.div_ceil(60_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_read() {
        assert_eq!(clock_ms("1-02:03:04"), Some(93_784_000));
        assert_eq!(clock_ms("100:00:00"), Some(360_000_000));
        assert_eq!(clock_ms("4:59"), Some(299_000));
        assert_eq!(clock_ms("90"), Some(90_000));
        for bad in ["UNLIMITED", "N/A", "", "1:2:3:4", "99999999999999999999-0", "18446744073709551615:0"] {
            assert_eq!(clock_ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_rounded_up() {
        assert_eq!(hours_words(360_000_001), "100:00:01");
        assert_eq!(hours_words(1), "00:00:01");
        assert_eq!(clock_words(90_061_001), "1-01:01:02");
        assert_eq!(clock_words(1), "00:00:01");
        assert_eq!((minutes(1), minutes(60_000), minutes(60_001)), (1, 1, 2));
    }
}
