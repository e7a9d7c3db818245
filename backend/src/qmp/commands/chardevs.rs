//! Commands about character devices.

use super::{Command, NOTHING, command, done};
use crate::cli::Object;
use crate::qapi::tables::EMPTY;
use crate::qapi::tables::chardevs::{CHARDEV_INFO, RINGBUF_READ_ARG, RINGBUF_WRITE_ARG};
use crate::qapi::{STR, Type};
use crate::qmp::{Context, QmpError};
use serde_json::{Value, json};

/// Read at once, whatever is asked for: no ring buffer is larger.
const READ_BYTES_MAX: i64 = 1 << 30;

pub(super) static COMMANDS: &[Command] = &[
    command(
        "query-chardev",
        &EMPTY,
        Type::Array(&Type::Object(&CHARDEV_INFO)),
        query,
    ),
    command("ringbuf-read", &RINGBUF_READ_ARG, STR, read),
    command("ringbuf-write", &RINGBUF_WRITE_ARG, NOTHING, write),
];

fn query(context: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    let chardevs = context.daemon.chardevs();
    let shown = chardevs.map(|chardev| {
        json!({
            "label": chardev.id, "filename": chardev.filename, "frontend-open": chardev.frontend_open,
        })
    });
    Ok(Value::Array(shown.collect()))
}

/// How bytes are written in JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Utf8,
    Base64,
}

fn format(arguments: &mut Object) -> Result<Format, QmpError> {
    let words = [("utf8", Format::Utf8), ("base64", Format::Base64)];
    Ok(arguments.word("format", &words)?.unwrap_or(Format::Utf8))
}

fn read(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let device = arguments.required_string("device")?;
    let size = arguments.int64("size")?.unwrap_or(0);
    let format = format(&mut arguments)?;
    let ring = context.daemon.ringbuf(&device)?;
    if size <= 0 {
        return Err(QmpError::new("size must be greater than zero"));
    }
    let len_max = usize::try_from(size.min(READ_BYTES_MAX)).unwrap_or(0);
    let bytes = ring.read(len_max);
    Ok(match format {
        Format::Utf8 => String::from_utf8_lossy(&bytes).into_owned().into(),
        Format::Base64 => base64::encode(&bytes).into(),
    })
}

fn write(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let device = arguments.required_string("device")?;
    let data = arguments.required_string("data")?;
    let format = format(&mut arguments)?;
    let ring = context.daemon.ringbuf(&device)?;
    match format {
        Format::Utf8 => ring.write(data.as_bytes()),
        Format::Base64 => {
            let invalid = || QmpError::new("Base64 data contains invalid characters");
            ring.write(&base64::decode(&data).ok_or_else(invalid)?);
        }
    }
    done()
}

/// RFC 4648, section 4.
mod base64 {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub(super) fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for three in bytes.chunks(3) {
            let mut word = [0; 4];
            word[1..=three.len()].copy_from_slice(three);
            let word = u32::from_be_bytes(word);
            for at in 0..4 {
                let digit = (word >> (18 - 6 * at)) & 63;
                let is_there = at <= three.len() as u32;
                text.push(if is_there {
                    DIGITS[digit as usize].into()
                } else {
                    '='
                });
            }
        }
        text
    }

    /// As QEMU has it: digits and line breaks, and what is left of an incomplete group is dropped.
    pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
        let (mut word, mut digits) = (0u32, 0);
        let mut padding = 0;
        for byte in text.bytes().filter(|byte| !b"\r\n".contains(byte)) {
            let digit = match DIGITS.iter().position(|digit| *digit == byte) {
                Some(digit) if padding == 0 => digit as u32,
                _ if byte == b'=' => {
                    padding += 1;
                    0
                }
                _ => return None,
            };
            word = word << 6 | digit;
            digits += 1;
            if digits == 4 {
                let three = &word.to_be_bytes()[1..];
                bytes.extend(&three[..3usize.saturating_sub(padding)]);
                (word, digits) = (0, 0);
            }
        }
        Some(bytes)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use proptest::prelude::*;

        #[test]
        fn the_vectors_of_the_rfc() {
            let table = [
                ("", ""),
                ("f", "Zg=="),
                ("fo", "Zm8="),
                ("foo", "Zm9v"),
                ("foob", "Zm9vYg=="),
                ("fooba", "Zm9vYmE="),
                ("foobar", "Zm9vYmFy"),
            ];
            for (plain, encoded) in table {
                assert_eq!(encode(plain.as_bytes()), encoded);
                assert_eq!(decode(encoded).as_deref(), Some(plain.as_bytes()));
            }
            assert_eq!(decode("Zm9v!"), None);
            assert_eq!(decode("Zm9v Zm9v"), None);
            assert_eq!(decode("Zg==Zg=="), None);
            assert_eq!(decode("aGVsbG8"), Some(b"hel".to_vec()));
        }

        proptest! {
            #[test]
            fn what_is_encoded_is_decoded_the_same(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
                prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
            }

            #[test]
            fn no_text_makes_it_panic(text in "[A-Za-z0-9+/=\n]{0,40}") {
                let _ = decode(&text);
            }
        }
    }
}
