//! Values out of a stream of bytes, and out of a text that holds one.

use super::Rules;
use super::build::Builder;
use super::lex::{Byte, Lexer, Token};
use crate::cli::{DEPTH_MAX, Refusal};
use crate::json::Nul;
use serde_json::Value;

/// Finds values in a stream.
#[derive(Debug)]
pub struct Reader {
    lexer: Lexer,
    builder: Builder,
}

/// What a byte did.
#[derive(Debug)]
pub struct Step {
    /// A value that is complete now, or what was wrong with it.
    pub message: Option<Result<Value, Refusal>>,
    /// Has the byte to be looked at again? It ended something that it is not part of.
    pub again: bool,
}

impl Reader {
    /// A reader at the beginning of its stream.
    pub fn new(rules: Rules) -> Reader {
        Reader {
            lexer: Lexer::default(),
            builder: Builder::new(rules),
        }
    }

    /// Looks at a byte.
    pub fn step(&mut self, byte: u8) -> Step {
        let (token, byte) = self.lexer.step(byte);
        Step {
            message: token.and_then(|token| self.builder.take(token)),
            again: byte == Byte::Left,
        }
    }

    /// The stream is over: what was begun and not finished.
    fn end(&mut self) -> Option<Result<Value, Refusal>> {
        let last = self.lexer.end();
        let message = last.and_then(|token: Token<'_>| self.builder.take(token));
        message.or_else(|| self.builder.end().map(Err))
    }
}

/// Reads one JSON value and nothing after it, as an option's argument.
///
/// # Errors
/// In QEMU's words, among them `JSON parse error, premature EOI`, `JSON parse error, duplicate key`, `Expecting at most one JSON value`.
pub fn parse(text: &str) -> Result<Value, Refusal> {
    let mut reader = Reader::new(Rules {
        depth_max: DEPTH_MAX,
        nul: Nul::Refused,
    });
    let mut found = None;
    for byte in text.bytes() {
        loop {
            let step = reader.step(byte);
            if let Some(message) = step.message {
                found = Some(first(found, message)?);
            }
            if !step.again {
                break;
            }
        }
    }
    if let Some(message) = reader.end() {
        found = Some(first(found, message)?);
    }
    found.ok_or_else(|| super::build::error("premature EOI"))
}

/// There may be one, and what is wrong with a second does not matter.
fn first(found: Option<Value>, message: Result<Value, Refusal>) -> Result<Value, Refusal> {
    match found {
        None => message,
        Some(_) => Err(Refusal::new("Expecting at most one JSON value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Number;
    use serde_json::json;

    #[test]
    fn values_are_read_with_either_quote() {
        let text = r#" {"a": [1, -2, 1.5e1, true, null, 18446744073709551615], 'b"': 'it\'s "\u00e9\ud83d\ude00"'} "#;
        let expected = json!({
            "a": [1, -2, 15.0, true, null, 18_446_744_073_709_551_615_u64],
            "b\"": "it's \"é😀\"",
        });
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn a_nul_in_a_string_is_refused() {
        assert_eq!(
            parse(r#"{"a":"\u0000"}"#).unwrap_err().to_string(),
            "JSON parse error, \\u0000 is not a valid Unicode character"
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(DEPTH_MAX)).is_ok());
        let refused = parse(&nested(DEPTH_MAX + 1)).unwrap_err();
        assert_eq!(refused.to_string(), "JSON nesting depth limit exceeded");
        assert!(parse(&"[{".repeat(100_000)).is_err());
    }

    /// What Unicode sets aside is refused, as by QEMU.
    fn text(pattern: &'static str) -> impl Strategy<Value = String> {
        let is_character = |c| !crate::json::text::is_noncharacter(c);
        pattern.prop_filter("characters alone", move |text| {
            text.chars().all(is_character)
        })
    }

    fn a_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |number| Number::from_f64(number)
                .map(Value::Number)),
            text("[^\0]{0,12}").prop_map(Value::String),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                prop::collection::hash_map(text("[^\0]{0,6}"), inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_serde_json_writes_is_read_back(value in a_value()) {
            prop_assert_eq!(parse(&value.to_string()), Ok(value.clone()));
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(parse(&pretty), Ok(value));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_accepted_without_single_quotes_is_what_serde_json_accepts(
            text in r#"[{}\[\],:"\\ux0-9a-ftrulsen.eE +-]{0,24}"#
        ) {
            // Exponents may overflow and -0 is an integer here: the two differences in numbers.
            let has_exponent = text.as_bytes().windows(2).any(|pair| {
                pair[0].is_ascii_digit() && pair[1].eq_ignore_ascii_case(&b'e')
            });
            prop_assume!(!has_exponent && !text.contains("-0"));
            if let Ok(value) = parse(&text) {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value));
            }
        }
    }
}
