//! The text of strings and numbers: escapes undone, UTF-8 checked, in the order in which they stand.

use super::build::error;
use crate::cli::Refusal;
use serde_json::Number;

/// May a string have a NUL in it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nul {
    /// As in QEMU.
    Kept,
    /// No option can hold one: it ends a path, a name, an argument.
    Refused,
}

/// The smallest type that holds it: i64, u64, else f64.
pub(super) fn number(text: &[u8]) -> Number {
    let text = std::str::from_utf8(text).unwrap_or("0");
    if let Ok(value) = text.parse::<i64>() {
        return value.into();
    }
    if let Ok(value) = text.parse::<u64>() {
        return value.into();
    }
    let value = text.parse::<f64>().unwrap_or(f64::MAX);
    // JSON has no infinity; the largest double is as much of an overflow to every option.
    Number::from_f64(value.clamp(f64::MIN, f64::MAX)).unwrap_or_else(|| 0.into())
}

/// The text of a token with quotes at its ends.
pub(super) fn unescape(token: &[u8], nul: Nul) -> Result<String, Refusal> {
    let inner = token.len().checked_sub(1).and_then(|end| token.get(1..end));
    let mut rest = inner.unwrap_or_default();
    let quote = token.last().copied().unwrap_or(b'"');
    let mut text = String::with_capacity(rest.len());
    while let Some((first, after)) = rest.split_first() {
        rest = match first {
            b'\\' => escape(after, quote, nul, &mut text)?,
            _ => plain(rest, nul, &mut text)?,
        };
    }
    Ok(text)
}

/// Takes everything up to the next escape, or up to a NUL in its long form.
fn plain<'a>(bytes: &'a [u8], nul: Nul, text: &mut String) -> Result<&'a [u8], Refusal> {
    let invalid = || error("invalid UTF-8 sequence in string");
    let end = bytes.iter().position(|byte| *byte == b'\\');
    let (run, after) = bytes.split_at(end.unwrap_or(bytes.len()));
    let (good, bad) = match std::str::from_utf8(run) {
        Ok(good) => (good, &[][..]),
        Err(error) => {
            let (good, bad) = run.split_at(error.valid_up_to());
            (std::str::from_utf8(good).unwrap_or_default(), bad)
        }
    };
    if good.chars().any(is_noncharacter) {
        return Err(invalid());
    }
    text.push_str(good);
    match bad {
        [] => Ok(after),
        // "Modified UTF-8" has NUL in two bytes, so that it can stand in a C string.
        [0xc0, 0x80, ..] if nul == Nul::Kept => {
            text.push('\0');
            Ok(&bytes[good.len() + 2..])
        }
        _ => Err(invalid()),
    }
}

/// Undoes the escape whose backslash came before `rest`; what follows it.
fn escape<'a>(rest: &'a [u8], quote: u8, nul: Nul, text: &mut String) -> Result<&'a [u8], Refusal> {
    let invalid = || error("invalid escape sequence in string");
    let (kind, after) = rest.split_first().ok_or_else(invalid)?;
    let plain = match kind {
        b'"' | b'\'' | b'\\' | b'/' => char::from(*kind),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode(after, quote, nul, text),
        _ => return Err(invalid()),
    };
    text.push(plain);
    Ok(after)
}

/// Undoes `\uXXXX`, or a pair of them; `rest` follows the first `\u`.
fn unicode<'a>(
    rest: &'a [u8],
    quote: u8,
    nul: Nul,
    text: &mut String,
) -> Result<&'a [u8], Refusal> {
    let Some((high, after)) = hex4(rest) else {
        // QEMU shows the four bytes where the digits should be, which may be the closing quote.
        let shown: Vec<u8> = rest.iter().copied().chain([quote]).take(4).collect();
        return Err(not_unicode(&shown, None));
    };
    let low = after.strip_prefix(b"\\u").and_then(hex4);
    let (code, after, second) = match (high, low) {
        (0xd800..=0xdbff, Some((low @ 0xdc00..=0xdfff, after_low))) => {
            let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            (code, after_low, after.get(2..6))
        }
        _ => (high, after, None),
    };
    match char::from_u32(code) {
        Some(c) if !is_noncharacter(c) && (c != '\0' || nul == Nul::Kept) => {
            text.push(c);
            Ok(after)
        }
        _ => Err(not_unicode(&rest[..4], second)),
    }
}

fn not_unicode(first: &[u8], second: Option<&[u8]>) -> Refusal {
    let shown = |digits: &[u8]| format!("\\u{}", String::from_utf8_lossy(digits));
    let second = second.map(shown).unwrap_or_default();
    error(format_args!(
        "{}{second} is not a valid Unicode character",
        shown(first)
    ))
}

fn hex4(text: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = text.split_at_checked(4)?;
    let value = |sum: Option<u32>, digit: &u8| Some(sum? * 16 + char::from(*digit).to_digit(16)?);
    Some((digits.iter().fold(Some(0), value)?, rest))
}

/// Code points that Unicode keeps free for programs' own use, and QEMU refuses.
pub(super) fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}
