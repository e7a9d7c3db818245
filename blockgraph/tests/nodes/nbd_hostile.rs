//! NBD servers that lie before they serve: every sentence no server may say fails the opening, with a word on what was
//! wrong, and nothing panics, hangs or allocates by a server's word. What they do later is in `nbd_hostile_replies.rs`.

use crate::support;
use blockgraph::Mode;
use blockgraph::driver::nbd::client::NbdOptions;
use blockgraph::driver::nbd::wire::{
    BlockSizes, Form, Info, MetaReply, OptionKind, OptionReplyKind,
};
use blockgraph::graph::open::open;
use ring::Choice;
use support::fake_nbd::{Peer, SIZE, context, head, oldstyle, serve};
use support::{Bench, nbd, pki};

use OptionKind::{ExtendedHeaders, Go, List, SetMetaContext, StartTls};
use OptionReplyKind::{Ack, MetaContext, Unsupported};

fn bench() -> Bench {
    Bench::new(Choice::Threads, Mode::Fast)
}

/// What opening says to a server that does `act`.
fn refusal_of(
    name: &str,
    change: impl FnOnce(&mut NbdOptions),
    act: impl FnOnce(&mut Peer) + Send + 'static,
) -> String {
    println!("{name}");
    let dir = tempfile::tempdir().expect("a directory");
    let server = serve(dir.path(), act);
    let mut options = nbd::options(&server);
    change(&mut options);
    let mut bench = bench();
    let error = open(&bench.current, nbd::node(options), &mut bench.control);
    error.expect_err(name).to_string()
}

type Act = fn(&mut Peer);

#[test]
fn lies_in_the_greeting_are_refused() {
    let cases: &[(&str, Act, &str)] = &[
        ("hangs up", |_| (), "read initial magic"),
        ("cut short", |p| p.send(b"NBDMAG"), "read initial magic"),
        (
            "speaks HTTP",
            |p| p.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "Bad initial magic",
        ),
        (
            "other second magic",
            |p| p.send(b"NBDMAGICNBDMAGIC\0\x03"),
            "Bad server magic",
        ),
        (
            "oldstyle with a name asked for",
            |p| oldstyle(p, SIZE, 1),
            "non-empty export names",
        ),
        (
            "hangs up after its flags",
            |p| p.greet(3),
            // The request may still go out or not.
            "option re",
        ),
    ];
    for (name, act, expected) in cases {
        let said = refusal_of(name, |_| (), *act);
        assert!(said.contains(expected), "{name}: {said}");
    }
    let nameless = |options: &mut NbdOptions| options.export = String::new();
    for (name, act, expected) in [
        (
            "oldstyle with flags in 32 bits",
            (|p| oldstyle(p, SIZE, 1 << 16)) as Act,
            "export flags",
        ),
        (
            "oldstyle and negative",
            |p| oldstyle(p, u64::MAX, 1),
            "too large",
        ),
    ] {
        let said = refusal_of(name, nameless, act);
        assert!(said.contains(expected), "{name}: {said}");
    }
}

#[test]
fn lies_about_options_are_refused() {
    fn first(peer: &mut Peer) {
        peer.shake_until(Form::Extended, Some(ExtendedHeaders));
    }
    let cases: &[(&str, Act, &str)] = &[
        (
            "a reply without magic",
            |p| {
                first(p);
                p.send(&[0x55; 20]);
            },
            "Unexpected option reply",
        ),
        (
            "a reply to another option",
            |p| {
                first(p);
                p.reply(Go, Ack, &[]);
            },
            "Unexpected option type",
        ),
        (
            "a reply of 4 GiB",
            |p| {
                first(p);
                p.reply_with(ExtendedHeaders, Unsupported, u32::MAX, &[]);
                p.listen();
            },
            "payload too long",
        ),
        (
            "a consent with a payload",
            |p| {
                first(p);
                p.reply(ExtendedHeaders, Ack, &[1]);
            },
            "Unexpected reply type",
        ),
        (
            "a context that is not the one asked for",
            |p| {
                p.shake_until(Form::Structured, Some(SetMetaContext));
                let mut payload = Vec::new();
                let (id, name) = (1, "base:other");
                MetaReply { id, name }.encode(&mut payload);
                p.reply(SetMetaContext, MetaContext, &payload);
            },
            "different context",
        ),
        (
            "the same context twice",
            |p| {
                p.shake_until(Form::Structured, Some(SetMetaContext));
                p.reply(SetMetaContext, MetaContext, &context(1));
                p.reply(SetMetaContext, MetaContext, &context(2));
            },
            "different context",
        ),
        (
            "a context of three bytes",
            |p| {
                p.shake_until(Form::Structured, Some(SetMetaContext));
                p.reply(SetMetaContext, MetaContext, &[0; 3]);
            },
            "Bad meta context",
        ),
        (
            "a context that is no text",
            |p| {
                p.shake_until(Form::Structured, Some(SetMetaContext));
                p.reply(SetMetaContext, MetaContext, &[0, 0, 0, 1, 0xff, 0xfe]);
            },
            "Bad meta context",
        ),
        (
            "exports that are never all listed",
            |p| {
                p.shake_until(Form::Simple, Some(Go));
                p.reply(Go, Unsupported, &[]);
                assert_eq!(p.option(), List);
                for _ in 0..10_001 {
                    p.reply(List, OptionReplyKind::Server, &[0, 0, 0, 1, b'x']);
                }
            },
            "too many replies",
        ),
        (
            "an export with a name longer than its reply",
            |p| {
                p.shake_until(Form::Simple, Some(Go));
                p.reply(Go, Unsupported, &[]);
                p.option();
                p.reply(
                    List,
                    OptionReplyKind::Server,
                    &[0xff, 0xff, 0xff, 0xff, b'x'],
                );
            },
            "Bad export in a listing",
        ),
        (
            "a listing without the export",
            |p| {
                p.shake_until(Form::Simple, Some(Go));
                p.reply(Go, Unsupported, &[]);
                p.option();
                p.reply(List, Ack, &[]);
            },
            "No export with name 'disk' available",
        ),
        (
            "hangs up on the export's name",
            |p| {
                p.shake_until(Form::Simple, Some(Go));
                p.reply(Go, Unsupported, &[]);
                p.option();
                p.reply(List, Unsupported, &[]);
                p.option();
            },
            "read export length",
        ),
    ];
    for (name, act, expected) in cases {
        let said = refusal_of(name, |_| (), *act);
        assert!(said.contains(expected), "{name}: {said}");
    }
}

fn sizes(minimum_bytes: u32, preferred_bytes: u32, maximum_bytes: u32) -> Option<BlockSizes> {
    Some(BlockSizes {
        minimum_bytes,
        preferred_bytes,
        maximum_bytes,
    })
}

#[test]
fn exports_that_cannot_be_are_refused() {
    fn at_go(peer: &mut Peer) {
        peer.shake_until(Form::Structured, Some(Go));
    }
    let cases: &[(&str, Act, &str)] = &[
        (
            "no size at all",
            |p| {
                at_go(p);
                p.reply(Go, Ack, &[]);
            },
            "omitted NBD_INFO_EXPORT",
        ),
        (
            "a size of nine bytes",
            |p| {
                at_go(p);
                p.reply(Go, OptionReplyKind::Info, &[0; 9]);
            },
            "Bad info",
        ),
        (
            "an info without its kind",
            |p| {
                at_go(p);
                p.reply(Go, OptionReplyKind::Info, &[0]);
            },
            "Bad info",
        ),
        (
            "infos without end",
            |p| {
                at_go(p);
                for _ in 0..10_001 {
                    p.info(Info::Other(99));
                }
            },
            "too many replies",
        ),
        (
            "another option's answer",
            |p| {
                at_go(p);
                p.reply(Go, OptionReplyKind::Server, &[]);
            },
            "Unexpected reply type",
        ),
        (
            "2^64-1 bytes",
            |p| {
                at_go(p);
                p.go(head(u64::MAX), None);
            },
            "too large",
        ),
        (
            "2^63 bytes",
            |p| {
                at_go(p);
                p.go(head(1 << 63), None);
            },
            "too large",
        ),
        (
            "blocks of no size",
            |p| {
                at_go(p);
                p.go(head(SIZE), sizes(0, 0, 0));
            },
            "minimum block size",
        ),
        (
            "blocks of 2 GiB",
            |p| {
                at_go(p);
                p.go(head(1 << 40), sizes(1 << 31, 1 << 31, u32::MAX));
            },
            "minimum block size",
        ),
        (
            "a largest block below the smallest",
            |p| {
                at_go(p);
                p.go(head(SIZE), sizes(4096, 4096, 512));
            },
            "maximum block size",
        ),
        (
            "half a block at its end",
            |p| {
                at_go(p);
                p.go(head(SIZE + 512), sizes(4096, 4096, u32::MAX));
            },
            "not multiple of minimum block size",
        ),
    ];
    for (name, act, expected) in cases {
        let said = refusal_of(name, |_| (), *act);
        assert!(said.contains(expected), "{name}: {said}");
    }
}

#[test]
fn lies_about_tls_are_refused() {
    let keys = tempfile::tempdir().expect("a directory");
    pki::authority(keys.path());
    let cases: &[(&str, Act, &str)] = &[
        (
            "more than consent to TLS, to be read as if encrypted",
            |p| {
                p.greet(3);
                p.option();
                p.reply(StartTls, Ack, b"plain");
            },
            "too long",
        ),
        (
            "plain replies after the consent",
            |p| {
                p.greet(3);
                p.option();
                p.reply(StartTls, Ack, &[]);
                p.reply(ExtendedHeaders, Ack, &[]);
                p.listen();
            },
            "TLS handshake failed",
        ),
        (
            "consent and silence broken by the end",
            |p| {
                p.greet(3);
                p.option();
                p.reply(StartTls, Ack, &[]);
            },
            "do the TLS handshake",
        ),
        (
            "no options, so no TLS",
            |p| p.greet(0),
            "does not support STARTTLS",
        ),
    ];
    for (name, act, expected) in cases {
        let with_tls = |o: &mut NbdOptions| o.tls = nbd::tls(keys.path(), Some("localhost"));
        let said = refusal_of(name, with_tls, *act);
        assert!(said.contains(expected), "{name}: {said}");
    }
}
