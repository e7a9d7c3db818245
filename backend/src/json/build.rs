//! A value out of tokens, token by token.
//!
//! The rule: as in QEMU, a message ends where its brackets and braces are even, or where one closes too many. What is wrong
//! inside it is found at once and told at its end; meanwhile nothing of it is kept.

use super::Rules;
use super::lex::{TOKEN_BYTES_MAX, Token};
use super::text::{number, unescape};
use crate::cli::Refusal;
use serde_json::{Map, Value};

/// All tokens of a message together (QEMU: 64 MiB).
const MESSAGE_BYTES_MAX: usize = TOKEN_BYTES_MAX;
/// Tokens of a message (QEMU: 2 Mi).
const TOKENS_MAX: usize = 2 << 20;

/// What is wrong with what was read, in QEMU's words.
pub(super) fn error(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(format!("JSON parse error, {what}"))
}

/// Builds one value after the other.
#[derive(Debug)]
pub(super) struct Builder {
    rules: Rules,
    open: Vec<Level>,
    failure: Option<Refusal>,
    /// More opened than closed.
    braces: i64,
    brackets: i64,
    tokens: usize,
    bytes: usize,
}

/// An object or a list that is open.
#[derive(Debug)]
enum Level {
    Object {
        members: Map<String, Value>,
        key: Option<String>,
        next: Next,
    },
    List {
        elements: Vec<Value>,
        next: Next,
    },
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A key or an element, or the end.
    First,
    Key,
    Colon,
    Value,
    Separator,
}

impl Builder {
    pub(super) fn new(rules: Rules) -> Builder {
        Builder {
            rules,
            open: Vec::new(),
            failure: None,
            braces: 0,
            brackets: 0,
            tokens: 0,
            bytes: 0,
        }
    }

    /// Is a message begun and not ended?
    fn is_inside(&self) -> bool {
        self.tokens > 0
    }

    /// Takes a token; the message, or what was wrong with it, when that was its last.
    pub(super) fn take(&mut self, token: Token<'_>) -> Option<Result<Value, Refusal>> {
        self.count(token);
        let over = self.over_a_limit(token);
        if let Some(refusal) = over {
            return Some(self.finish(Err(refusal)));
        }
        self.tokens += 1;
        let value = match &self.failure {
            None => self.place(token),
            Some(_) => None,
        };
        let even = self.braces == 0 && self.brackets == 0;
        if !even && self.braces >= 0 && self.brackets >= 0 {
            return None;
        }
        let failure = self.failure.take();
        let value = value.ok_or_else(|| failure.unwrap_or_else(|| error("expecting value")));
        Some(self.finish(value))
    }

    /// The input is over. What was wrong with an unfinished message, or that it is unfinished.
    pub(super) fn end(&mut self) -> Option<Refusal> {
        let failure = self.failure.take();
        let inside = self.is_inside();
        *self = Builder::new(self.rules);
        inside.then(|| failure.unwrap_or_else(|| error("premature EOI")))
    }

    fn finish(&mut self, result: Result<Value, Refusal>) -> Result<Value, Refusal> {
        *self = Builder::new(self.rules);
        result
    }

    fn count(&mut self, token: Token<'_>) {
        match token {
            Token::Open(b'{') => self.braces += 1,
            Token::Open(_) => self.brackets += 1,
            Token::Close(b'}') => self.braces -= 1,
            Token::Close(_) => self.brackets -= 1,
            _ => {}
        }
    }

    fn over_a_limit(&mut self, token: Token<'_>) -> Option<Refusal> {
        let len = match token {
            Token::Stray(text) => return Some(stray(text)),
            Token::TooLong => TOKEN_BYTES_MAX,
            Token::String(text) | Token::Number(text) | Token::Keyword(text) => text.len(),
            _ => 1,
        };
        let depth_max = i64::try_from(self.rules.depth_max).unwrap_or(i64::MAX);
        let limit = if self.bytes + len + 1 > MESSAGE_BYTES_MAX {
            "JSON token size limit exceeded"
        } else if self.tokens + 1 > TOKENS_MAX {
            "JSON token count limit exceeded"
        } else if self.braces + self.brackets > depth_max {
            "JSON nesting depth limit exceeded"
        } else {
            self.bytes += len;
            return None;
        };
        Some(Refusal::new(limit))
    }

    /// Puts a token where it belongs; the value, if it is complete.
    fn place(&mut self, token: Token<'_>) -> Option<Value> {
        let next = match self.open.last() {
            None => Next::Value,
            Some(Level::Object { next, .. } | Level::List { next, .. }) => *next,
        };
        let placed = match next {
            Next::First | Next::Key | Next::Value => self.value(token, next),
            Next::Colon => self.colon(token),
            Next::Separator => self.separator(token),
        };
        placed.unwrap_or_else(|refusal| {
            self.failure = Some(refusal);
            self.open.clear();
            None
        })
    }

    fn value(&mut self, token: Token<'_>, next: Next) -> Result<Option<Value>, Refusal> {
        let value = match token {
            Token::Open(b'{') => {
                self.open.push(Level::Object {
                    members: Map::new(),
                    key: None,
                    next: Next::First,
                });
                return Ok(None);
            }
            Token::Open(_) => {
                self.open.push(Level::List {
                    elements: Vec::new(),
                    next: Next::First,
                });
                return Ok(None);
            }
            Token::Close(bracket) if next == Next::First && self.closes(bracket) => {
                return self.close();
            }
            Token::String(text) => Value::String(unescape(text, self.rules.nul)?),
            Token::Number(text) => Value::Number(number(text)),
            Token::Keyword(b"true") => Value::Bool(true),
            Token::Keyword(b"false") => Value::Bool(false),
            Token::Keyword(b"null") => Value::Null,
            Token::Keyword(word) => {
                let word = String::from_utf8_lossy(word);
                return Err(error(format_args!("invalid keyword '{word}'")));
            }
            _ => return Err(error("expecting value")),
        };
        self.deliver(value)
    }

    fn colon(&mut self, token: Token<'_>) -> Result<Option<Value>, Refusal> {
        match token {
            Token::Colon => self.expect(Next::Value),
            _ => return Err(error("missing : in object pair")),
        }
        Ok(None)
    }

    fn separator(&mut self, token: Token<'_>) -> Result<Option<Value>, Refusal> {
        match (token, self.open.last()) {
            (Token::Close(bracket), _) if self.closes(bracket) => return self.close(),
            (Token::Comma, Some(Level::Object { .. })) => self.expect(Next::Key),
            (Token::Comma, _) => self.expect(Next::Value),
            (_, Some(Level::Object { .. })) => return Err(error("expected separator in dict")),
            _ => return Err(error("expected separator in list")),
        }
        Ok(None)
    }

    fn expect(&mut self, what: Next) {
        if let Some(Level::Object { next, .. } | Level::List { next, .. }) = self.open.last_mut() {
            *next = what;
        }
    }

    fn closes(&self, bracket: u8) -> bool {
        match self.open.last() {
            Some(Level::Object { .. }) => bracket == b'}',
            Some(Level::List { .. }) => bracket == b']',
            None => false,
        }
    }

    fn close(&mut self) -> Result<Option<Value>, Refusal> {
        match self.open.pop() {
            Some(Level::Object { members, .. }) => self.deliver(Value::Object(members)),
            Some(Level::List { elements, .. }) => self.deliver(Value::Array(elements)),
            None => Err(error("expecting value")),
        }
    }

    /// A value is complete: it is a key, a member, an element, or all.
    fn deliver(&mut self, value: Value) -> Result<Option<Value>, Refusal> {
        match self.open.last_mut() {
            None => return Ok(Some(value)),
            Some(Level::List { elements, next }) => {
                elements.push(value);
                *next = Next::Separator;
            }
            Some(Level::Object { members, key, next }) if *next == Next::Value => {
                let name = key.take().unwrap_or_default();
                if members.contains_key(&name) {
                    return Err(error("duplicate key"));
                }
                members.insert(name, value);
                *next = Next::Separator;
            }
            Some(Level::Object { key, next, .. }) => {
                let Value::String(name) = value else {
                    return Err(error("key is not a string in object"));
                };
                *key = Some(name);
                *next = Next::Colon;
            }
        }
        Ok(None)
    }
}

/// As a C program prints it: up to the first NUL.
fn stray(text: &[u8]) -> Refusal {
    let end = text.iter().position(|byte| *byte == 0);
    let shown = String::from_utf8_lossy(&text[..end.unwrap_or(text.len())]);
    error(format_args!("stray '{shown}'"))
}
