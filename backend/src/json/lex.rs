//! JSON tokens out of bytes, with QEMU's idea of what is stray: everything from the start of a token up to and including the
//! first byte that does not fit. After that, all is skipped up to the next bracket, brace, comma, colon or control character.
//!
//! The rule: one byte at a time, and one token at most for each step. A byte that ends a token without being part of it is
//! looked at again.

/// The longest token (QEMU: 64 MiB).
pub(super) const TOKEN_BYTES_MAX: usize = 64 << 20;
/// A buffer larger than this is given back once its token is done with.
const BUFFER_BYTES_KEPT: usize = 64 << 10;

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// `{` or `[`
    Open(u8),
    /// `}` or `]`
    Close(u8),
    Comma,
    Colon,
    /// With its quotes, escapes not undone.
    String(&'a [u8]),
    Number(&'a [u8]),
    Keyword(&'a [u8]),
    /// What belongs nowhere.
    Stray(&'a [u8]),
    /// A token that never ends.
    TooLong,
}

/// What became of the byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    Taken,
    /// To be looked at again.
    Left,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    String {
        quote: u8,
    },
    Escaped {
        quote: u8,
    },
    Number(Part),
    Keyword,
    /// After something stray.
    Skipping,
}

/// Where a number stands (RFC 8259, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exp,
    ExpSign,
    ExpDigits,
}

/// What a byte does to the token it may belong to.
enum Then {
    Go(State),
    /// That was its last byte.
    Last(Kind),
    /// It ended before this byte.
    Before(Kind),
    Stray,
}

#[derive(Clone, Copy)]
enum Kind {
    String,
    Number,
    Keyword,
}

impl Kind {
    fn of(self, text: &[u8]) -> Token<'_> {
        match self {
            Kind::String => Token::String(text),
            Kind::Number => Token::Number(text),
            Kind::Keyword => Token::Keyword(text),
        }
    }
}

/// Finds tokens in a stream.
#[derive(Debug, Default)]
pub(super) struct Lexer {
    state: State,
    text: Vec<u8>,
}

impl Lexer {
    /// Looks at a byte; a token, if it ended one, is valid until the next step.
    pub(super) fn step(&mut self, byte: u8) -> (Option<Token<'_>>, Byte) {
        match self.state {
            State::Start => self.start(byte),
            State::Skipping => self.skip(byte),
            State::String { quote } => self.go_on(byte, in_string(quote, byte)),
            State::Escaped { quote } => self.go_on(byte, in_escape(quote, byte)),
            State::Number(part) => self.go_on(byte, in_number(part, byte)),
            State::Keyword => self.go_on(byte, in_keyword(byte)),
        }
    }

    /// The input is over: what was begun ends, or is stray.
    pub(super) fn end(&mut self) -> Option<Token<'_>> {
        let state = std::mem::take(&mut self.state);
        match state {
            State::Start | State::Skipping => None,
            State::Number(part) if part.may_end() => Some(Token::Number(&self.text)),
            State::Keyword => Some(Token::Keyword(&self.text)),
            State::Number(_) | State::String { .. } | State::Escaped { .. } => {
                Some(Token::Stray(&self.text))
            }
        }
    }

    fn start(&mut self, byte: u8) -> (Option<Token<'_>>, Byte) {
        self.text.clear();
        self.text.shrink_to(BUFFER_BYTES_KEPT);
        let token = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => None,
            b'{' | b'[' => Some(Token::Open(byte)),
            b'}' | b']' => Some(Token::Close(byte)),
            b',' => Some(Token::Comma),
            b':' => Some(Token::Colon),
            b'"' | b'\'' => self.begin(byte, State::String { quote: byte }),
            b'-' => self.begin(byte, State::Number(Part::Minus)),
            b'0' => self.begin(byte, State::Number(Part::Zero)),
            b'1'..=b'9' => self.begin(byte, State::Number(Part::Digits)),
            b'a'..=b'z' => self.begin(byte, State::Keyword),
            _ => return (Some(self.stray(byte)), Byte::Taken),
        };
        (token, Byte::Taken)
    }

    fn begin(&mut self, byte: u8, state: State) -> Option<Token<'_>> {
        self.text.push(byte);
        self.state = state;
        None
    }

    fn stray(&mut self, byte: u8) -> Token<'_> {
        self.text.push(byte);
        self.state = State::Skipping;
        Token::Stray(&self.text)
    }

    fn skip(&mut self, byte: u8) -> (Option<Token<'_>>, Byte) {
        // 0xFE and 0xFF are in no UTF-8: who sends them asks to begin anew (QEMU's qmp-spec, "Forcing the JSON parser into known-good state").
        let begins = matches!(
            byte,
            0..=0x1f | 0xfe | 0xff | b'{' | b'}' | b'[' | b']' | b',' | b':'
        );
        match begins {
            true => {
                self.state = State::Start;
                (None, Byte::Left)
            }
            false => (None, Byte::Taken),
        }
    }

    fn go_on(&mut self, byte: u8, then: Then) -> (Option<Token<'_>>, Byte) {
        match then {
            Then::Go(_) if self.text.len() >= TOKEN_BYTES_MAX => {
                self.state = State::Start;
                (Some(Token::TooLong), Byte::Taken)
            }
            Then::Go(state) => (self.begin(byte, state), Byte::Taken),
            Then::Last(kind) => {
                self.text.push(byte);
                self.state = State::Start;
                (Some(kind.of(&self.text)), Byte::Taken)
            }
            Then::Before(kind) => {
                self.state = State::Start;
                (Some(kind.of(&self.text)), Byte::Left)
            }
            Then::Stray => (Some(self.stray(byte)), Byte::Taken),
        }
    }
}

fn in_string(quote: u8, byte: u8) -> Then {
    match byte {
        b'\\' => Then::Go(State::Escaped { quote }),
        _ if byte == quote => Then::Last(Kind::String),
        0..=0x1f | 0xfe | 0xff => Then::Stray,
        _ => Then::Go(State::String { quote }),
    }
}

fn in_escape(quote: u8, byte: u8) -> Then {
    match byte {
        0..=0x1f | 0xfe | 0xff => Then::Stray,
        _ => Then::Go(State::String { quote }),
    }
}

fn in_keyword(byte: u8) -> Then {
    match byte {
        b'a'..=b'z' => Then::Go(State::Keyword),
        _ => Then::Before(Kind::Keyword),
    }
}

impl Part {
    fn may_end(self) -> bool {
        matches!(
            self,
            Part::Zero | Part::Digits | Part::Fraction | Part::ExpDigits
        )
    }
}

fn in_number(part: Part, byte: u8) -> Then {
    let part = match (part, byte) {
        (Part::Minus, b'0') => Part::Zero,
        (Part::Minus | Part::Digits, b'0'..=b'9') => Part::Digits,
        (Part::Zero, b'0'..=b'9') => return Then::Stray,
        (Part::Zero | Part::Digits, b'.') => Part::Point,
        (Part::Point | Part::Fraction, b'0'..=b'9') => Part::Fraction,
        // Not after a lone zero: there QEMU sees a number and then a keyword.
        (Part::Digits | Part::Fraction, b'e' | b'E') => Part::Exp,
        (Part::Exp, b'+' | b'-') => Part::ExpSign,
        (Part::Exp | Part::ExpSign | Part::ExpDigits, b'0'..=b'9') => Part::ExpDigits,
        _ if part.may_end() => return Then::Before(Kind::Number),
        _ => return Then::Stray,
    };
    Then::Go(State::Number(part))
}
