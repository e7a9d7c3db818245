//! JSON as QEMU reads it: strings also in single quotes, duplicate keys refused, every message in QEMU's words.
//!
//! As there, tokens are read up to the closing bracket before anything is parsed, so stray text is reported before a misplaced token.
//! serde_json gives the tree but not the reading: its messages, quotes and treatment of duplicates are others.

use serde_json::{Map, Number, Value};

use super::error::Refusal;
use super::json_lex::{Lexer, Token};
use super::keyval::DEPTH_MAX;

/// Reads one JSON value and nothing after it.
///
/// # Errors
/// In QEMU's words, among them `JSON parse error, premature EOI`, `JSON parse error, duplicate key`, `Expecting at most one JSON value`.
pub fn parse(text: &str) -> Result<Value, Refusal> {
    let mut lexer = Lexer::new(text);
    let tokens = balanced(&mut lexer)?;
    let mut parser = Parser {
        tokens: tokens.into_iter().peekable(),
    };
    let value = parser.value()?;
    if parser.tokens.peek().is_some() || !lexer.is_at_end() {
        return Err(Refusal::new("Expecting at most one JSON value"));
    }
    Ok(value)
}

fn error(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(format!("JSON parse error, {what}"))
}

/// Tokens up to the one that closes the first bracket, or closes one too many, or to the end: the parser says what is wrong then.
fn balanced<'a>(lexer: &mut Lexer<'a>) -> Result<Vec<Token<'a>>, Refusal> {
    let mut tokens = Vec::new();
    let (mut braces, mut brackets) = (0usize, 0usize);
    while let Some(token) = lexer.next_token().map_err(stray)? {
        let closes = match token {
            Token::Open('{') => bump(&mut braces),
            Token::Open(_) => bump(&mut brackets),
            Token::Close('}') => drop_one(&mut braces),
            Token::Close(_) => drop_one(&mut brackets),
            _ => false,
        };
        tokens.push(token);
        if braces + brackets > DEPTH_MAX {
            return Err(Refusal::new("JSON nesting depth limit exceeded"));
        }
        if closes || braces + brackets == 0 {
            break;
        }
    }
    Ok(tokens)
}

fn bump(count: &mut usize) -> bool {
    *count += 1;
    false
}

/// Whether there was none to drop.
fn drop_one(count: &mut usize) -> bool {
    match count.checked_sub(1) {
        Some(less) => {
            *count = less;
            false
        }
        None => true,
    }
}

fn stray(text: &str) -> Refusal {
    error(format_args!("stray '{text}'"))
}

struct Parser<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token<'a>>>,
}

/// Depth is bounded by [`DEPTH_MAX`], hence the recursion.
impl<'a> Parser<'a> {
    fn next(&mut self) -> Result<Token<'a>, Refusal> {
        self.tokens.next().ok_or_else(|| error("premature EOI"))
    }

    fn value(&mut self) -> Result<Value, Refusal> {
        match self.next()? {
            Token::Open('{') => self.object().map(Value::Object),
            Token::Open(_) => self.array().map(Value::Array),
            Token::String(raw) => unescape(raw).map(Value::String),
            Token::Number(text) => Ok(Value::Number(number(text))),
            Token::Keyword("true") => Ok(Value::Bool(true)),
            Token::Keyword("false") => Ok(Value::Bool(false)),
            Token::Keyword("null") => Ok(Value::Null),
            Token::Keyword(word) => Err(error(format_args!("invalid keyword '{word}'"))),
            Token::Close(_) | Token::Comma | Token::Colon => Err(error("expecting value")),
        }
    }

    fn object(&mut self) -> Result<Map<String, Value>, Refusal> {
        let mut members = Map::new();
        if self.tokens.next_if_eq(&Token::Close('}')).is_some() {
            return Ok(members);
        }
        loop {
            self.pair(&mut members)?;
            match self.next()? {
                Token::Close('}') => return Ok(members),
                Token::Comma => {}
                _ => return Err(error("expected separator in dict")),
            }
        }
    }

    fn pair(&mut self, members: &mut Map<String, Value>) -> Result<(), Refusal> {
        let Value::String(key) = self.value()? else {
            return Err(error("key is not a string in object"));
        };
        if self.next()? != Token::Colon {
            return Err(error("missing : in object pair"));
        }
        let value = self.value()?;
        if members.contains_key(&key) {
            return Err(error("duplicate key"));
        }
        members.insert(key, value);
        Ok(())
    }

    fn array(&mut self) -> Result<Vec<Value>, Refusal> {
        let mut elements = Vec::new();
        if self.tokens.next_if_eq(&Token::Close(']')).is_some() {
            return Ok(elements);
        }
        loop {
            elements.push(self.value()?);
            match self.next()? {
                Token::Close(']') => return Ok(elements),
                Token::Comma => {}
                _ => return Err(error("expected separator in list")),
            }
        }
    }
}

/// The smallest type that holds it: i64, u64, else f64.
fn number(text: &str) -> Number {
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

/// The text between the quotes with its escapes undone.
fn unescape(raw: &str) -> Result<String, Refusal> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        rest = escape(after, &mut text)?;
    }
    text.push_str(rest);
    Ok(text)
}

/// Undoes the escape whose backslash came before `rest`; what follows it.
fn escape<'a>(rest: &'a str, text: &mut String) -> Result<&'a str, Refusal> {
    let invalid = || error("invalid escape sequence in string");
    let kind = rest.chars().next().ok_or_else(invalid)?;
    let after = &rest[kind.len_utf8()..];
    let plain = match kind {
        '"' | '\'' | '\\' | '/' => kind,
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => return unicode(after, text),
        _ => return Err(invalid()),
    };
    text.push(plain);
    Ok(after)
}

/// Undoes `\uXXXX`, or a pair of them; `rest` follows the first `\u`.
fn unicode<'a>(rest: &'a str, text: &mut String) -> Result<&'a str, Refusal> {
    let (high, after) = hex4(rest).ok_or_else(|| {
        // QEMU shows the four bytes where the digits should be, which may be the closing quote.
        let shown: String = rest.chars().chain(['"']).take(4).collect();
        not_unicode(&format!("\\u{shown}"))
    })?;
    let low = after.strip_prefix("\\u").and_then(hex4);
    let (code, after, spelling) = match (high, low) {
        (0xd800..=0xdbff, Some((low @ 0xdc00..=0xdfff, after_low))) => {
            let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            (code, after_low, format!("\\u{high:04x}\\u{low:04x}"))
        }
        _ => (high, after, format!("\\u{}", &rest[..4])),
    };
    match char::from_u32(code) {
        // No option can hold a NUL: it ends a path, a name, an argument.
        Some(c) if c != '\0' => {
            text.push(c);
            Ok(after)
        }
        _ => Err(not_unicode(&spelling)),
    }
}

fn not_unicode(spelling: &str) -> Refusal {
    error(format_args!("{spelling} is not a valid Unicode character"))
}

fn hex4(text: &str) -> Option<(u32, &str)> {
    let digits = text.get(..4)?;
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    Some((u32::from_str_radix(digits, 16).ok()?, &text[4..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
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

    fn a_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |number| Number::from_f64(number)
                .map(Value::Number)),
            "[^\0]{0,12}".prop_map(Value::String),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
                prop::collection::hash_map("[^\0]{0,6}", inner, 0..5)
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
