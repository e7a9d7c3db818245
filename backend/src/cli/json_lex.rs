//! JSON tokens, with QEMU's idea of what is stray: everything from the start of a token up to and including the first byte that does not fit.

/// One token, borrowed from the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// `{` or `[`
    Open(char),
    /// `}` or `]`
    Close(char),
    Comma,
    Colon,
    /// Between the quotes, escapes not undone.
    String(&'a str),
    Number(&'a str),
    Keyword(&'a str),
}

#[derive(Debug)]
pub(super) struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// Whether only white space is left.
    pub(super) fn is_at_end(&self) -> bool {
        self.rest.trim_start_matches(WHITE).is_empty()
    }

    /// The next token, `None` at the end.
    ///
    /// # Errors
    /// The stray text.
    pub(super) fn next_token(&mut self) -> Result<Option<Token<'a>>, &'a str> {
        self.rest = self.rest.trim_start_matches(WHITE);
        let Some(first) = self.rest.chars().next() else {
            return Ok(None);
        };
        let (len, token): (usize, fn(&'a str) -> Token<'a>) = match first {
            '{' | '[' => return Ok(Some(self.punctuation(Token::Open(first)))),
            '}' | ']' => return Ok(Some(self.punctuation(Token::Close(first)))),
            ',' => return Ok(Some(self.punctuation(Token::Comma))),
            ':' => return Ok(Some(self.punctuation(Token::Colon))),
            '"' | '\'' => (string_len(self.rest, first)?, |text| {
                Token::String(&text[1..text.len() - 1])
            }),
            '-' | '0'..='9' => (number_len(self.rest)?, Token::Number),
            'a'..='z' => {
                let is_letter = |b: &u8| b.is_ascii_lowercase();
                let len = self.rest.bytes().take_while(|b| is_letter(b)).count();
                (len, Token::Keyword)
            }
            _ => return Err(&self.rest[..first.len_utf8()]),
        };
        let (text, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(Some(token(text)))
    }

    fn punctuation(&mut self, token: Token<'a>) -> Token<'a> {
        self.rest = &self.rest[1..];
        token
    }
}

const WHITE: [char; 4] = [' ', '\t', '\r', '\n'];

/// The length of a string with its quotes.
fn string_len(text: &str, quote: char) -> Result<usize, &str> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c < ' ' {
            return Err(&text[..at + c.len_utf8()]);
        }
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err(text)
}

/// Where a number stands (RFC 8259, section 6).
#[derive(Clone, Copy)]
enum Part {
    Start,
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exp,
    ExpSign,
    ExpDigits,
}

fn number_len(text: &str) -> Result<usize, &str> {
    let mut part = Part::Start;
    for (at, c) in text.char_indices() {
        part = match (part, c) {
            (Part::Start, '-') => Part::Minus,
            (Part::Start | Part::Minus, '0') => Part::Zero,
            (Part::Start | Part::Minus | Part::Digits, '0'..='9') => Part::Digits,
            (Part::Zero | Part::Digits, '.') => Part::Point,
            (Part::Point | Part::Fraction, '0'..='9') => Part::Fraction,
            (Part::Zero | Part::Digits | Part::Fraction, 'e' | 'E') => Part::Exp,
            (Part::Exp, '+' | '-') => Part::ExpSign,
            (Part::Exp | Part::ExpSign | Part::ExpDigits, '0'..='9') => Part::ExpDigits,
            (Part::Zero, '0'..='9') => return Err(&text[..at + 1]),
            (Part::Zero | Part::Digits | Part::Fraction | Part::ExpDigits, _) => return Ok(at),
            _ => return Err(&text[..at + c.len_utf8()]),
        };
    }
    match part {
        Part::Zero | Part::Digits | Part::Fraction | Part::ExpDigits => Ok(text.len()),
        _ => Err(text),
    }
}
