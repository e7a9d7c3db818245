//! Numbers as people read them.

/// Bytes, with at most three digits before and one behind the point.
pub(crate) fn bytes(bytes: f64) -> String {
    const NAMES: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes;
    let mut at = 0;
    // What rounds to 1024 is one of the next.
    while value >= 1023.95 && at + 1 < NAMES.len() {
        value /= 1024.0;
        at += 1;
    }
    format!("{} {}", short(value), NAMES[at])
}

/// A count: thousands as k, millions as M.
pub(crate) fn count(count: f64) -> String {
    match count {
        c if c < 9_999.5 => short(c),
        c if c < 9_999_500.0 => format!("{}k", short(c / 1e3)),
        c => format!("{}M", short(c / 1e6)),
    }
}

/// A time that is given in nanoseconds.
pub(crate) fn time(ns: f64) -> String {
    match ns {
        t if t < 999.5 => format!("{} ns", short(t)),
        t if t < 999_950.0 => format!("{} us", short(t / 1e3)),
        t if t < 999_950_000.0 => format!("{} ms", short(t / 1e6)),
        t => format!("{} s", short(t / 1e9)),
    }
}

/// One digit behind the point where it says something.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    match text.strip_suffix(".0") {
        Some(whole) => whole.to_owned(),
        None if value >= 99.95 => format!("{value:.0}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_rounded_to_the_next_unit() {
        let sizes = [0.0, 512.0, 1023.0, 1023.99, 1536.0, 229_376.0, 1e30];
        let sizes = sizes.map(bytes);
        let expected = ["0 B", "512 B", "1023 B", "1 KiB", "1.5 KiB", "224 KiB"];
        assert_eq!(sizes[..6], expected);
        assert!(sizes[6].ends_with(" EiB"));
        assert_eq!(
            [0.0, 0.25, 1234.0, 12_345.0, 4e6, 2e7].map(count),
            ["0", "0.2", "1234", "12.3k", "4000k", "20M"]
        );
        assert_eq!(
            [12.0, 1500.0, 2.5e6, 3e9].map(time),
            ["12 ns", "1.5 us", "2.5 ms", "3 s"]
        );
    }
}
