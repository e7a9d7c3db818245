//! JSON as QEMU writes it: a space after each colon and comma, everything but printable ASCII escaped, numbers as C's `%.17g`.
//!
//! The rule: members come in the order of QEMU's hash table, which is all the order its objects have. Clients should not care,
//! and some compare bytes.

use serde_json::{Map, Number, Value};

/// Is it broken into lines for people?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One line.
    Compact,
    /// A line for each member and element, four spaces for each level.
    Pretty,
}

/// Appends the text of a value. Its depth is bounded by the parser, or by the types of answers, hence the recursion.
pub fn write(value: &Value, layout: Layout, out: &mut Vec<u8>) {
    Writer { layout, out }.value(value, 0);
}

/// The members of an object in the order in which QEMU goes through them.
pub fn in_order(members: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut ordered: Vec<_> = members.iter().collect();
    if ordered.len() > 1 {
        // Within a bucket the last that came is the first.
        ordered.reverse();
        ordered.sort_by_cached_key(|(name, _)| bucket(name));
    }
    ordered
}

/// The bucket of a name in QEMU's dictionaries: the hash of Samba's TDB over 512 buckets.
fn bucket(name: &str) -> u32 {
    let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let begin = 0x238f_13af_u32.wrapping_mul(len);
    let sum = name.bytes().enumerate().fold(begin, |sum, (at, byte)| {
        sum.wrapping_add(u32::from(byte) << (at * 5 % 24))
    });
    sum.wrapping_mul(1_103_515_243).wrapping_add(12_345) % 512
}

struct Writer<'a> {
    layout: Layout,
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.out.extend(b"null"),
            Value::Bool(true) => self.out.extend(b"true"),
            Value::Bool(false) => self.out.extend(b"false"),
            Value::Number(number) => self.number(number),
            Value::String(text) => self.string(text),
            Value::Array(elements) => {
                self.out.push(b'[');
                for (at, element) in elements.iter().enumerate() {
                    self.separate(at, depth + 1);
                    self.value(element, depth + 1);
                }
                self.close(b']', depth);
            }
            Value::Object(members) => {
                self.out.push(b'{');
                for (at, (name, member)) in in_order(members).into_iter().enumerate() {
                    self.separate(at, depth + 1);
                    self.string(name);
                    self.out.extend(b": ");
                    self.value(member, depth + 1);
                }
                self.close(b'}', depth);
            }
        }
    }

    fn separate(&mut self, at: usize, depth: usize) {
        match self.layout {
            Layout::Compact if at > 0 => self.out.extend(b", "),
            Layout::Compact => {}
            Layout::Pretty => {
                if at > 0 {
                    self.out.push(b',');
                }
                self.line(depth);
            }
        }
    }

    fn close(&mut self, bracket: u8, depth: usize) {
        if self.layout == Layout::Pretty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        self.out.extend(b"\r\n");
        self.out.resize(self.out.len() + depth * 4, b' ');
    }

    fn number(&mut self, number: &Number) {
        let text = match number.as_f64() {
            Some(value) if number.is_f64() => general(value),
            _ => number.to_string(),
        };
        self.out.extend(text.as_bytes());
    }

    fn string(&mut self, text: &str) {
        self.out.push(b'"');
        for c in text.chars() {
            self.char(c);
        }
        self.out.push(b'"');
    }

    fn char(&mut self, c: char) {
        let escape: &[u8] = match c {
            '"' => b"\\\"",
            '\\' => b"\\\\",
            '\u{8}' => b"\\b",
            '\u{c}' => b"\\f",
            '\n' => b"\\n",
            '\r' => b"\\r",
            '\t' => b"\\t",
            ' '..='~' => return self.out.push(c as u8),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    self.out.extend(format!("\\u{unit:04X}").as_bytes());
                }
                return;
            }
        };
        self.out.extend(escape);
    }
}

/// C's `%.17g`: as many digits as tell two doubles apart, without the zeros at the end.
fn general(value: f64) -> String {
    const DIGITS: i32 = 17;
    let scientific = format!("{value:.*e}", DIGITS as usize - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..DIGITS).contains(&exponent) {
        let decimals = usize::try_from(DIGITS - 1 - exponent).unwrap_or(0);
        return without_zeros(&format!("{value:.decimals$}")).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    let mantissa = without_zeros(mantissa);
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

fn without_zeros(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(value: &Value, layout: Layout) -> String {
        let mut out = Vec::new();
        write(value, layout, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn members_come_in_qemus_order() {
        let value = json!({"id": 1, "error": 2, "return": 3, "major": 4, "minor": 5, "micro": 6, "desc": 7, "class": 8});
        assert_eq!(
            text(&value, Layout::Compact),
            r#"{"class": 8, "micro": 6, "minor": 5, "desc": 7, "return": 3, "major": 4, "id": 1, "error": 2}"#
        );
    }

    #[test]
    fn numbers_are_spelled_as_c_spells_them() {
        let table = [
            (0.1, "0.10000000000000001"),
            (1.0, "1"),
            (-0.0, "-0"),
            (2.5, "2.5"),
            (1e16, "10000000000000000"),
            (1e17, "1e+17"),
            (1e30, "1e+30"),
            (1e-4, "0.0001"),
            (1e-5, "1.0000000000000001e-05"),
            (123_456.789, "123456.789"),
            (-9.223_372_036_854_776e18, "-9.2233720368547758e+18"),
            (5e-324, "4.9406564584124654e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
        ];
        for (value, expected) in table {
            assert_eq!(text(&json!(value), Layout::Compact), expected);
        }
        assert_eq!(
            text(&json!(u64::MAX), Layout::Compact),
            "18446744073709551615"
        );
    }

    #[test]
    fn everything_but_printable_ascii_is_escaped() {
        let value = json!("\"\\/\u{8}\u{c}\n\r\t\u{0}\u{1f}\u{7f}é😀~ ");
        assert_eq!(
            text(&value, Layout::Compact),
            r#""\"\\/\b\f\n\r\t\u0000\u001F\u007F\u00E9\uD83D\uDE00~ ""#
        );
    }

    #[test]
    fn pretty_is_four_spaces_and_a_line_for_each_member() {
        let value = json!({"a": [1, {}], "b": []});
        assert_eq!(
            text(&value, Layout::Pretty),
            "{\r\n    \"a\": [\r\n        1,\r\n        {\r\n        }\r\n    ],\r\n    \"b\": [\r\n    ]\r\n}"
        );
    }
}
