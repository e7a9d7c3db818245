//! `--chardev`, which is written in QEMU's older form, and `--monitor`.
//!
//! The rule: as in QEMU, every key is known to every backend. One that a backend has no use for changes nothing, and that is
//! said; one that we cannot do is refused wherever it stands.

use super::error::Refusal;
use super::options::{
    ChardevAddress, ChardevBackend, ChardevOptions, Delay, FileMode, InetAddress, MonitorMode,
    MonitorOptions, StdioSignal, Tight, Wait,
};
use super::qemu_opts::{Kind, Opts};
use super::visit::Object;
use std::ffi::OsStr;
use std::time::Duration;

/// Larger than anybody needs, and a bound on what a word on the command line can make us keep.
const RINGBUF_BYTES_MAX: u64 = 1 << 30;
const RINGBUF_BYTES_DEFAULT: u64 = 65536;

const KEYS: &[(&str, Kind)] = &[
    ("abstract", Kind::Bool),
    ("append", Kind::Bool),
    ("backend", Kind::Str),
    ("chardev", Kind::Str),
    ("chardevs.0", Kind::Str),
    ("chardevs.1", Kind::Str),
    ("chardevs.2", Kind::Str),
    ("chardevs.3", Kind::Str),
    ("clipboard", Kind::Bool),
    ("cols", Kind::Number),
    ("debug", Kind::Number),
    ("delay", Kind::Bool),
    ("fd", Kind::Str),
    ("height", Kind::Number),
    ("host", Kind::Str),
    ("input-path", Kind::Str),
    ("ipv4", Kind::Bool),
    ("ipv6", Kind::Bool),
    ("localaddr", Kind::Str),
    ("localport", Kind::Str),
    ("logappend", Kind::Bool),
    ("logfile", Kind::Str),
    ("mouse", Kind::Bool),
    ("mux", Kind::Bool),
    ("name", Kind::Str),
    ("nodelay", Kind::Bool),
    ("path", Kind::Str),
    ("port", Kind::Str),
    ("reconnect-ms", Kind::Number),
    ("reconnect", Kind::Number),
    ("rows", Kind::Number),
    ("server", Kind::Bool),
    ("signal", Kind::Bool),
    ("size", Kind::Size),
    ("telnet", Kind::Bool),
    ("tight", Kind::Bool),
    ("tls-authz", Kind::Str),
    ("tls-creds", Kind::Str),
    ("tn3270", Kind::Bool),
    ("to", Kind::Number),
    ("wait", Kind::Bool),
    ("websocket", Kind::Bool),
    ("width", Kind::Number),
];

const SOCKET_KEYS: &[&str] = &[
    "abstract",
    "delay",
    "fd",
    "host",
    "ipv4",
    "ipv6",
    "nodelay",
    "path",
    "port",
    "reconnect",
    "reconnect-ms",
    "server",
    "tight",
    "to",
    "wait",
];

/// What QEMU has and we do not, whether or not the backend would look at it.
const BOOLS_REFUSED: &[&str] = &["mux", "telnet", "tn3270", "websocket"];
const STRINGS_REFUSED: &[&str] = &["logfile", "tls-creds", "tls-authz"];

/// Backends that QEMU has and we do not.
const BACKENDS_REFUSED: &[&str] = &["pty", "udp", "parallel", "pipe", "mux", "serial", "hub"];

const BACKENDS: &[(&str, &[&str])] = &[
    ("file", &["append", "input-path", "path"]),
    ("memory", &["size"]),
    ("null", &[]),
    ("ringbuf", &["size"]),
    ("socket", SOCKET_KEYS),
    ("stdio", &["signal"]),
];

/// What `--chardev` comes to.
#[derive(Debug)]
pub(super) enum Chardev {
    Options(ChardevOptions),
    Help(String),
}

/// Reads `--chardev`; `origin` is the whole option as written. What is to be said on stderr comes in any case.
pub(super) fn chardev(text: &OsStr, origin: &str) -> (Vec<String>, Result<Chardev, Refusal>) {
    let Some(text) = text.to_str() else {
        let refusal = Refusal::new("the argument is not valid UTF-8");
        return (Vec::new(), Err(refusal));
    };
    let (mut opts, parsed) = Opts::parse(text, "backend", KEYS);
    let mut warnings = std::mem::take(&mut opts.warnings);
    let read = parsed.and_then(|()| read(opts, origin, &mut warnings));
    (warnings, read)
}

fn read(opts: Opts, origin: &str, warnings: &mut Vec<String>) -> Result<Chardev, Refusal> {
    let name = opts.string("backend");
    if matches!(name, Some("help" | "?")) || (opts.help && name.is_none()) {
        return Ok(Chardev::Help(backends_help()));
    }
    if opts.help {
        return Ok(Chardev::Help(keys_help()));
    }
    let Some(id) = &opts.id else {
        return Err(Refusal::new("chardev: no id specified"));
    };
    let Some(name) = name else {
        return Err(Refusal::new(format!("chardev: \"{id}\" missing backend")));
    };
    if BACKENDS_REFUSED.contains(&name) {
        return Err(Refusal::unsupported(format_args!("chardev '{name}'")));
    }
    let known = BACKENDS.iter().find(|(known, _)| *known == name);
    let Some((name, used)) = known else {
        let refusal = format!("'{name}' is not a valid char driver name");
        return Err(Refusal::new(refusal));
    };
    refuse_what_we_cannot(&opts)?;
    let backend = backend(name, &opts)?;
    let unused = opts
        .keys()
        .filter(|key| *key != "backend" && !used.contains(key));
    warnings
        .extend(unused.map(|key| format!("warning: '{key}' means nothing to a chardev '{name}'")));
    Ok(Chardev::Options(ChardevOptions {
        id: id.clone(),
        backend,
        origin: origin.to_owned(),
    }))
}

fn refuse_what_we_cannot(opts: &Opts) -> Result<(), Refusal> {
    let bools = BOOLS_REFUSED
        .iter()
        .filter(|key| opts.boolean(key) == Some(true));
    let strings = STRINGS_REFUSED.iter().filter(|key| opts.has(key));
    match bools.chain(strings).next() {
        Some(key) => Err(Refusal::unsupported(format_args!("'{key}' of a chardev"))),
        None => Ok(()),
    }
}

fn backend(name: &'static str, opts: &Opts) -> Result<ChardevBackend, Refusal> {
    match name {
        "socket" => socket(opts),
        "stdio" => Ok(ChardevBackend::Stdio {
            signal: match opts.boolean("signal") {
                Some(false) => StdioSignal::No,
                _ => StdioSignal::Yes,
            },
        }),
        "file" => file(opts),
        "ringbuf" | "memory" => ringbuf(name, opts),
        _ => Ok(ChardevBackend::Null),
    }
}

fn file(opts: &Opts) -> Result<ChardevBackend, Refusal> {
    let missing = || Refusal::new("chardev: file: no filename given");
    Ok(ChardevBackend::File {
        path: opts.string("path").ok_or_else(missing)?.into(),
        mode: match opts.boolean("append") {
            Some(true) => FileMode::Append,
            _ => FileMode::Truncate,
        },
        input: opts.string("input-path").map(Into::into),
    })
}

fn ringbuf(name: &'static str, opts: &Opts) -> Result<ChardevBackend, Refusal> {
    let size = opts.size("size").filter(|size| *size != 0);
    let size = size.unwrap_or(RINGBUF_BYTES_DEFAULT);
    if !size.is_power_of_two() {
        return Err(Refusal::new("size of ringbuf chardev must be power of two"));
    }
    match usize::try_from(size) {
        Ok(size_bytes) if size <= RINGBUF_BYTES_MAX => {
            Ok(ChardevBackend::Ringbuf { name, size_bytes })
        }
        _ => Err(Refusal::unsupported(format_args!(
            "a ringbuf of more than 1G"
        ))),
    }
}

fn socket(opts: &Opts) -> Result<ChardevBackend, Refusal> {
    let places = ["path", "fd", "host"].iter().filter(|key| opts.has(key));
    if places.count() > 1 {
        return Err(Refusal::new(
            "None or one of 'path', 'fd' or 'host' option required.",
        ));
    }
    if opts.has("host") && !opts.has("port") {
        return Err(Refusal::new("chardev: socket: no port given"));
    }
    for (one, other) in [("delay", "nodelay"), ("reconnect", "reconnect-ms")] {
        if opts.has(one) && opts.has(other) {
            return Err(Refusal::new(format!(
                "'{one}' and '{other}' are mutually exclusive"
            )));
        }
    }
    match opts.boolean("server").unwrap_or(false) {
        true => server(opts),
        false => client(opts),
    }
}

fn server(opts: &Opts) -> Result<ChardevBackend, Refusal> {
    if opts.has("reconnect") || opts.has("reconnect-ms") {
        return Err(Refusal::new(
            "'reconnect' option is incompatible with socket in server listen mode",
        ));
    }
    Ok(ChardevBackend::Server {
        at: address(opts)?,
        wait: match opts.boolean("wait") {
            Some(false) => Wait::No,
            _ => Wait::Yes,
        },
    })
}

fn client(opts: &Opts) -> Result<ChardevBackend, Refusal> {
    if opts.has("wait") {
        return Err(Refusal::new(
            "'wait' option is incompatible with socket in client connect mode",
        ));
    }
    let seconds = opts.number("reconnect").map(|s| s.saturating_mul(1000));
    let pause_ms = opts.number("reconnect-ms").or(seconds).unwrap_or(0);
    let at = address(opts)?;
    if let (ChardevAddress::Fd(_), 1..) = (&at, pause_ms) {
        return Err(Refusal::new("'reconnect' option is incompatible with 'fd'"));
    }
    Ok(ChardevBackend::Client {
        at,
        reconnect: (pause_ms > 0).then(|| Duration::from_millis(pause_ms)),
    })
}

fn address(opts: &Opts) -> Result<ChardevAddress, Refusal> {
    if let Some(path) = opts.string("path") {
        let tight = match opts.boolean("tight") {
            Some(false) => Tight::No,
            _ => Tight::Yes,
        };
        return Ok(match opts.boolean("abstract") {
            Some(true) => ChardevAddress::Abstract {
                name: path.to_owned(),
                tight,
            },
            _ => ChardevAddress::Unix(path.into()),
        });
    }
    if let Some(host) = opts.string("host") {
        return inet(opts, host);
    }
    let fd = opts.string("fd").unwrap_or_default();
    match fd.parse::<i32>() {
        Ok(number) => Ok(ChardevAddress::Fd(number)),
        Err(_) => Err(Refusal::new(format!("Unable to parse FD number {fd}"))),
    }
}

fn inet(opts: &Opts, host: &str) -> Result<ChardevAddress, Refusal> {
    let to = opts.number("to").map(u16::try_from).transpose();
    let no_delay = opts.boolean("nodelay") == Some(true) || opts.boolean("delay") == Some(false);
    let address = InetAddress {
        host: host.to_owned(),
        port: opts.string("port").unwrap_or_default().to_owned(),
        ipv4: opts.boolean("ipv4"),
        ipv6: opts.boolean("ipv6"),
        to: to.map_err(|_| Refusal::expects("to", "uint16_t"))?,
        numeric: false,
        keep_alive: false,
    };
    if (address.ipv4, address.ipv6) == (Some(false), Some(false)) {
        return Err(Refusal::new("Cannot disable IPv4 and IPv6 at same time"));
    }
    Ok(ChardevAddress::Inet {
        address,
        delay: if no_delay { Delay::No } else { Delay::Yes },
    })
}

fn backends_help() -> String {
    let names = BACKENDS.iter().map(|(name, _)| format!("  {name}\n"));
    format!(
        "Available chardev backend types: \n{}",
        names.collect::<String>()
    )
}

/// Only those that do something.
fn keys_help() -> String {
    let does = |key: &&(&str, Kind)| {
        key.0 == "backend" || BACKENDS.iter().any(|(_, used)| used.contains(&key.0))
    };
    let lines = KEYS.iter().filter(does).map(|(key, kind)| {
        let kind = match kind {
            Kind::Str => "str",
            Kind::Bool => "bool (on/off)",
            Kind::Number => "num",
            Kind::Size => "size",
        };
        format!("  {key}=<{kind}>\n")
    });
    format!("chardev options:\n{}", lines.collect::<String>())
}

/// Reads `--monitor`.
pub(super) fn monitor(mut o: Object) -> Result<MonitorOptions, Refusal> {
    let id = o.string("id")?;
    let modes = [
        ("control", MonitorMode::Control),
        ("readline", MonitorMode::Readline),
    ];
    let mode = o.word("mode", &modes)?.unwrap_or(MonitorMode::Control);
    let pretty = o.boolean("pretty")?.unwrap_or(false);
    let chardev = o.required_string("chardev")?;
    o.finish()?;
    Ok(MonitorOptions {
        id,
        chardev,
        mode,
        pretty,
    })
}
