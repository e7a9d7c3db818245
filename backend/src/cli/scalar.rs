//! Numbers and sizes as QEMU reads them from text: C's prefixes for integers, binary suffixes for sizes.

/// on or off, in the words that QEMU takes for them.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A signed integer: white space, sign, decimal or `0x` or octal.
pub(crate) fn int64(text: &str) -> Option<i64> {
    let (negative, magnitude) = integer(text)?;
    let value = i128::from(magnitude);
    i64::try_from(if negative { -value } else { value }).ok()
}

/// An unsigned integer. A negative one wraps, as C's strtoull does and QEMU's options have always done: the range checks that follow refuse it.
pub(crate) fn uint64(text: &str) -> Option<u64> {
    let (negative, magnitude) = integer(text)?;
    Some(match negative {
        true => magnitude.wrapping_neg(),
        false => magnitude,
    })
}

/// A size in bytes: decimal with an optional fraction and a suffix out of `b k M G T P E` in either case, or hexadecimal without a suffix.
pub(crate) fn size(text: &str) -> Option<u64> {
    let text = text.trim_start_matches(SPACE);
    if let Some(digits) = strip_hex(text) {
        return digits_value(digits, 16);
    }
    let whole_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, tail) = text.split_at(whole_len);
    let (fraction, suffix) = match tail.strip_prefix('.') {
        Some(tail) => {
            let len = tail.bytes().take_while(u8::is_ascii_digit).count();
            (Some(&tail[..len]), &tail[len..])
        }
        None => (None, tail),
    };
    let shift = suffix_shift(suffix)?;
    let unit = 1u64 << shift;
    let fraction = fraction.unwrap_or("");
    if (whole.is_empty() && fraction.is_empty()) || (!fraction.is_empty() && unit == 1) {
        return None;
    }
    let whole = if whole.is_empty() {
        0
    } else {
        digits_value(whole, 10)?
    };
    // A part of one unit, so below 2^60 and exact enough in a double.
    let part = format!("0.{fraction}0").parse::<f64>().ok()? * unit as f64;
    whole.checked_mul(unit)?.checked_add(part.round() as u64)
}

const SPACE: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

fn suffix_shift(suffix: &str) -> Option<u32> {
    Some(match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return None,
    })
}

/// Sign and magnitude.
fn integer(text: &str) -> Option<(bool, u64)> {
    let text = text.trim_start_matches(SPACE);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = match strip_hex(digits) {
        Some(hex) => digits_value(hex, 16)?,
        None if digits.starts_with('0') => digits_value(digits, 8)?,
        None => digits_value(digits, 10)?,
    };
    Some((negative, magnitude))
}

fn strip_hex(text: &str) -> Option<&str> {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))
}

/// Only digits: `from_str_radix` would take a sign.
fn digits_value(digits: &str, radix: u32) -> Option<u64> {
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_the_prefixes_of_c() {
        let cases = [
            ("0", Some(0)),
            ("010", Some(8)),
            ("0x1F", Some(31)),
            (" +7", Some(7)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("1k", None),
            ("08", None),
            ("0x", None),
            ("", None),
            ("--1", None),
            ("1 ", None),
        ];
        for (text, expected) in cases {
            assert_eq!(int64(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_negative_unsigned_integer_wraps() {
        assert_eq!(uint64("-1"), Some(u64::MAX));
        assert_eq!(uint64("18446744073709551615"), Some(u64::MAX));
        assert_eq!(uint64("18446744073709551616"), None);
    }

    #[test]
    fn sizes_take_suffixes_and_fractions() {
        let cases = [
            ("512", Some(512)),
            ("4k", Some(4096)),
            ("0.5K", Some(512)),
            ("1.5M", Some(1_572_864)),
            ("512b", Some(512)),
            ("0x200", Some(512)),
            ("15E", Some(15 << 60)),
            ("16E", None),
            ("0x200k", None),
            ("1.5", None),
            ("1e3", None),
            ("-1", None),
            ("k", None),
            (".", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text), expected, "{text:?}");
        }
    }
}
