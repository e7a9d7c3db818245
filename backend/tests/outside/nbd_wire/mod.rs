//! Scripts of bytes, right and wrong, sent to our NBD server and to qemu-storage-daemon's: the answers are the same, byte
//! for byte, what is expected is what comes, and the next client is served.
//!
//! The rule: replies to different requests may come in any order; everything else is compared as it is.

// Shared with the tests of abuse, which use more of it.
#[allow(dead_code)]
mod peer;
mod rows;
mod script;

use blockgraph::driver::nbd::wire::Form;
use peer::{COOKIE, Home, LAST, Part, Server, ask, error_of, haggle};
use rows::{Expect, Haggle, OPTION_ROWS, Request, same_as_qemu};

const OURS: &str = env!("CARGO_BIN_EXE_virtioblkd");
const QSD: &str = "qemu-storage-daemon";

#[test]
fn options_are_answered_as_by_qemu_and_the_next_client_is_served() {
    let (ours, theirs) = (Server::start(OURS, &[]), Server::start(QSD, &[]));
    for row in OPTION_ROWS {
        let Haggle {
            name,
            flags,
            options,
            ..
        } = row;
        let bytes = options();
        let got = haggle(&ours, *flags, &bytes);
        if same_as_qemu(row) {
            assert_eq!(
                shown(&got),
                shown(&haggle(&theirs, *flags, &bytes)),
                "{name}"
            );
        }
        rows::check_options(row, &got);
        assert!(ours.serves(), "after {name}");
    }
    assert!(OPTION_ROWS.len() >= 60, "{} rows", OPTION_ROWS.len());
}

#[test]
fn requests_are_answered_as_by_qemu_and_the_next_client_is_served() {
    requests_are_answered_as_by_qemu(Home::Any);
}

#[test]
fn requests_are_answered_as_by_qemu_on_an_iothread_too() {
    requests_are_answered_as_by_qemu(Home::Iothread);
}

fn requests_are_answered_as_by_qemu(home: Home) {
    let ours = Server::start_at(home, OURS, &[]);
    let theirs = Server::start(QSD, &[]);
    let mut count = 0;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        for row in rows::requests(form) {
            let Request {
                name,
                export,
                options,
                bytes,
                expect,
            } = &row;
            let got = ask(&ours, export, options, form, bytes);
            let wanted = ask(&theirs, export, options, form, bytes);
            let label = format!("{form:?}: {name}");
            assert_eq!(got.0, wanted.0, "{label}");
            assert_eq!(got.1, wanted.1, "{label}: closed?");
            check_request(form, *expect, &got, &label);
            assert!(ours.serves(), "after {label}");
            count += 1;
        }
    }
    assert!(count >= 60, "{count} rows");
}

fn check_request(form: Form, expect: Expect, (parts, closed): &(Vec<Part>, bool), label: &str) {
    let errors = |cookie| {
        let its = parts.iter().filter(move |(c, _)| *c == cookie);
        its.filter_map(|(_, bytes)| error_of(form, bytes))
    };
    let error = errors(COOKIE).next();
    match expect {
        Expect::Done => assert_eq!((error, *closed), (None, false), "{label}"),
        Expect::Refused => assert_eq!((error, *closed), (Some(22), false), "{label}"),
        Expect::Fatal => assert_eq!((error, *closed), (Some(22), true), "{label}"),
        Expect::Goodbye => assert!(*closed && error.is_none(), "{label}"),
    }
    assert_eq!(errors(LAST).next(), None, "{label}: the flush");
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned() + &format!(" {bytes:?}")
}
