//! `key=value,…` in QEMU's older form, which `--chardev` still has: flat, every key and its type known beforehand.
//!
//! The rule: `,,` is a comma in a value; the first parameter may be the implied key's value alone; `key` and `nokey` alone
//! stand for on and off, with a warning; the last of two equal keys wins, but of two ids the first.

use super::error::Refusal;
use super::{id_is_well_formed, scalar};

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Str,
    Bool,
    Number,
    Size,
}

/// An argument taken apart. Values have been held against their kinds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Opts {
    pub(super) id: Option<String>,
    /// In the order given.
    values: Vec<(String, String)>,
    /// `help` or `?` was among the parameters; nothing that came after it was looked at.
    pub(super) help: bool,
    /// For stderr, whether the argument is accepted or not.
    pub(super) warnings: Vec<String>,
}

/// A parameter before its meaning is known.
#[derive(Debug)]
struct Parameter<'a> {
    key: &'a str,
    value: String,
    spelling: Spelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelled {
    Pair,
    /// `key`
    On,
    /// `nokey`
    Off,
}

impl Opts {
    /// Takes `text` apart; `implied` is the key of a first parameter that has none. What is wrong with it, if anything, comes
    /// with what was found before.
    pub(super) fn parse(
        text: &str,
        implied: &str,
        keys: &[(&str, Kind)],
    ) -> (Opts, Result<(), Refusal>) {
        let mut opts = Opts::default();
        let parameters = split(text, Some(implied));
        // QEMU looks for the id before anything else, and knows of no implied key then.
        let mut ids = split(text, None).into_iter().filter(|p| p.key == "id");
        opts.id = ids.next().map(|parameter| parameter.value);
        if opts.id.as_ref().is_some_and(|id| !id_is_well_formed(id)) {
            return (opts, Err(no_identifier()));
        }
        let done = parameters
            .into_iter()
            .try_for_each(|parameter| opts.take(parameter, keys));
        (opts, done)
    }

    fn take(&mut self, parameter: Parameter<'_>, keys: &[(&str, Kind)]) -> Result<(), Refusal> {
        self.help |= parameter.asks_for_help();
        if self.help {
            return Ok(());
        }
        self.warnings.extend(parameter.warning());
        if parameter.key == "id" {
            return Ok(());
        }
        let known = keys.iter().find(|(key, _)| *key == parameter.key);
        let (key, kind) = known.ok_or_else(|| invalid(parameter.key))?;
        kind.check(key, &parameter.value)?;
        self.values
            .push((parameter.key.to_owned(), parameter.value));
        Ok(())
    }

    /// As it could have been written.
    #[cfg(test)]
    pub(super) fn spelled(&self) -> String {
        let id = self.id.iter().map(|id| format!("id={id}"));
        let values = self.values.iter();
        let values = values.map(|(key, value)| format!("{key}={}", value.replace(',', ",,")));
        id.chain(values).collect::<Vec<_>>().join(",")
    }

    /// Every key that was given.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|(key, _)| key.as_str())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.string(key).is_some()
    }

    pub(super) fn string(&self, key: &str) -> Option<&str> {
        let mut values = self.values.iter().rev();
        let found = values.find(|(found, _)| found == key);
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        scalar::boolean(self.string(key)?)
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        scalar::uint64(self.string(key)?)
    }

    pub(super) fn size(&self, key: &str) -> Option<u64> {
        scalar::size(self.string(key)?)
    }
}

impl Parameter<'_> {
    fn asks_for_help(&self) -> bool {
        self.spelling == Spelled::On && matches!(self.key, "help" | "?")
    }

    fn warning(&self) -> Option<String> {
        let key = self.key;
        let (prefix, value) = match self.spelling {
            Spelled::Pair => return None,
            Spelled::On => ("", "on"),
            Spelled::Off => ("no", "off"),
        };
        Some(format!(
            "warning: short-form boolean option '{prefix}{key}' deprecated\nPlease use {key}={value} instead"
        ))
    }
}

impl Kind {
    fn check(self, key: &str, value: &str) -> Result<(), Refusal> {
        match self {
            Kind::Str => Ok(()),
            Kind::Bool if scalar::boolean(value).is_some() => Ok(()),
            Kind::Bool => Err(Refusal::expects(key, "'on' or 'off'")),
            Kind::Number if scalar::uint64(value).is_some() => Ok(()),
            Kind::Number if is_digits(value) => Err(Refusal::new(format!(
                "Value '{value}' is too large for parameter '{key}'"
            ))),
            Kind::Number => Err(Refusal::expects(key, "a number")),
            Kind::Size if scalar::size(value).is_some() => Ok(()),
            Kind::Size if is_digits(value.trim_start_matches('-')) => Err(Refusal::new(format!(
                "Value '{value}' is out of range for parameter '{key}'"
            ))),
            Kind::Size => Err(Refusal::new(format!(
                "Parameter '{key}' expects a non-negative number below 2^64\n\
                 Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                 and exabytes, respectively."
            ))),
        }
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn invalid(key: &str) -> Refusal {
    Refusal::new(format!("Invalid parameter '{key}'"))
}

fn no_identifier() -> Refusal {
    Refusal::new(
        "Parameter 'id' expects an identifier\n\
         Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    )
}

fn split<'a>(text: &'a str, mut implied: Option<&'a str>) -> Vec<Parameter<'a>> {
    let mut parameters = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (parameter, after) = split_parameter(rest, implied.take());
        parameters.push(parameter);
        rest = after;
    }
    parameters
}

/// The first parameter of `text` and what comes after its comma.
fn split_parameter<'a>(text: &'a str, implied: Option<&'a str>) -> (Parameter<'a>, &'a str) {
    let end = text.find(['=', ',']).unwrap_or(text.len());
    let (key, tail) = text.split_at(end);
    if let Some(value) = tail.strip_prefix('=') {
        let (value, after) = super::keyval::split_value(value);
        return (Parameter::pair(key, value), after);
    }
    if let Some(implied) = implied.filter(|_| !matches!(key, "help" | "?")) {
        let (value, after) = super::keyval::split_value(text);
        return (Parameter::pair(implied, value), after);
    }
    let (key, spelling) = match key.strip_prefix("no") {
        Some(key) => (key, Spelled::Off),
        None => (key, Spelled::On),
    };
    let value = match spelling {
        Spelled::Off => "off",
        _ => "on",
    };
    let parameter = Parameter {
        key,
        value: value.to_owned(),
        spelling,
    };
    (parameter, tail.strip_prefix(',').unwrap_or(tail))
}

impl<'a> Parameter<'a> {
    fn pair(key: &'a str, value: String) -> Parameter<'a> {
        Parameter {
            key,
            value,
            spelling: Spelled::Pair,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYS: &[(&str, Kind)] = &[
        ("backend", Kind::Str),
        ("path", Kind::Str),
        ("server", Kind::Bool),
        ("wait", Kind::Bool),
        ("to", Kind::Number),
        ("size", Kind::Size),
    ];

    fn parse(text: &str) -> Result<Opts, String> {
        let (opts, done) = Opts::parse(text, "backend", KEYS);
        done.map(|()| opts).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn the_first_key_is_implied_and_commas_are_doubled() {
        let opts = parse("socket,id=a,path=/a,,b,path=/c,,,server=on").expect("good");
        assert_eq!(opts.string("backend"), Some("socket"));
        assert_eq!(opts.string("path"), Some("/c,"));
        assert_eq!(opts.id.as_deref(), Some("a"));
        assert_eq!(opts.boolean("server"), Some(true));
        assert_eq!(opts.number("to"), None);
    }

    #[test]
    fn a_bare_key_is_on_its_negation_off_and_both_are_warned_about() {
        let opts = parse("socket,server,nowait").expect("good");
        assert_eq!(opts.boolean("server"), Some(true));
        assert_eq!(opts.boolean("wait"), Some(false));
        let expected = [
            "warning: short-form boolean option 'server' deprecated\nPlease use server=on instead",
            "warning: short-form boolean option 'nowait' deprecated\nPlease use wait=off instead",
        ];
        assert_eq!(opts.warnings, expected);
    }

    #[test]
    fn what_is_wrong_is_said_in_qemus_words() {
        let table = [
            ("x,foo=1", "Invalid parameter 'foo'"),
            ("x,=1", "Invalid parameter ''"),
            ("x,no", "Invalid parameter ''"),
            ("x,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
            ("x,to=1k", "Parameter 'to' expects a number"),
            (
                "x,to=99999999999999999999",
                "Value '99999999999999999999' is too large for parameter 'to'",
            ),
            (
                "x,size=-1",
                "Value '-1' is out of range for parameter 'size'",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Err(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn help_ends_the_reading() {
        assert!(parse("help,foo=1").expect("help").help);
        assert!(parse("x,?,foo=1").expect("help").help);
        assert!(!parse("x,path=help").expect("a value").help);
    }

    proptest! {
        #[test]
        fn what_is_spelled_out_is_read_back(
            values in prop::collection::vec(("backend|path", ".{0,9}"), 0..6)
        ) {
            let given = Opts { values: values.clone(), ..Opts::default() };
            let opts = parse(&given.spelled()).expect("good");
            prop_assert_eq!(&opts.values, &values);
        }

        #[test]
        fn no_text_makes_it_panic_and_what_is_accepted_is_read_again_the_same(
            text in "(id|path|server|nowait|to|size|help|[,=an0?]){0,12}"
        ) {
            if let Ok(opts) = parse(&text) {
                let again = parse(&opts.spelled()).expect("what was accepted");
                prop_assert!(opts.help || again.values == opts.values);
            }
        }
    }
}
