//! NBD servers that lie in their answers, or give none: the request fails and the connection with it, and nothing panics,
//! hangs or allocates by a server's word. Those that are merely odd are understood.

use crate::support;
use blockgraph::driver::nbd::wire::{Chunk, ChunkKind, Command, Form, NbdError, RequestHead};
use blockgraph::{Kind, Mode, NodeId};
use ring::{Choice, Durability, Errno, Mem};
use support::fake_nbd::{CONTEXT, Peer, SIZE, chunk, data, oldstyle, serve};
use support::{Bench, nbd, span};

fn bench() -> Bench {
    Bench::new(Choice::Threads, Mode::Fast)
}

/// What is asked of a lying server.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Read,
    Write,
    Status,
}

/// 4096 bytes at 8192.
fn ask(bench: &mut Bench, node: NodeId, asked: Asked) -> Result<(), Errno> {
    let mem = Mem::zeroed(4096).expect("memory");
    let at = span(8192, 4096);
    match asked {
        Asked::Read => bench.ask(node, Kind::Read, at, &mem),
        Asked::Write => bench.ask(node, Kind::Write(Durability::Cached), at, &mem),
        Asked::Status => {
            let graph = bench.current.get();
            let status = |io: blockgraph::Io| async move { io.status(node, at).await };
            let status = bench.control.run(&graph, node, status);
            status.expect("a ring").map(|_| ())
        }
    }
}

/// The outcome of one request to a server that answers it by `act`, then hangs up; and of the next.
fn outcome(
    name: &str,
    form: Form,
    asked: Asked,
    act: impl FnOnce(&mut Peer, RequestHead) + Send + 'static,
) -> Result<(), Errno> {
    println!("{name}");
    let dir = tempfile::tempdir().expect("a directory");
    let server = serve(dir.path(), move |peer| {
        peer.shake_until(form, None);
        if let Some((request, _)) = peer.request(form) {
            act(peer, request);
        }
    });
    let mut bench = bench();
    let node = bench.open(nbd::node(nbd::options(&server)));
    let outcome = ask(&mut bench, node, asked);
    assert_eq!(
        ask(&mut bench, node, asked),
        Err(Errno::IO),
        "{name}: the next"
    );
    outcome
}

type Answer = fn(&mut Peer, RequestHead);
const STRUCTURED: Form = Form::Structured;
const EXTENDED: Form = Form::Extended;

fn all_fail(form: Form, asked: Asked, cases: &[(&str, Answer)]) {
    for (name, answer) in cases {
        assert_eq!(
            outcome(name, form, asked, *answer),
            Err(Errno::IO),
            "{name}"
        );
    }
}

/// Sends one chunk with that payload.
fn say(peer: &mut Peer, request: &RequestHead, kind: ChunkKind, payload: &[u8]) {
    peer.chunk(STRUCTURED, chunk(request, kind, payload.len()), payload);
}

#[test]
fn lies_in_answers_to_a_read_fail_it() {
    all_fail(
        STRUCTURED,
        Asked::Read,
        &[
            ("hangs up", |_, _| ()),
            ("no magic", |p, _| p.send(&[0; 64])),
            ("half a head", |p, _| p.send(&[0x66, 0x8e, 0x33, 0xef, 0])),
            ("a megabyte of noise", |p, _| p.send(&vec![0x77; 1 << 20])),
            ("a simple reply", |p, r| {
                p.simple(r.cookie, None);
                p.send(&[0; 4096]);
            }),
            ("a reply to nobody", |p, r| {
                let mut head = chunk(&r, ChunkKind::None, 0);
                head.cookie ^= 1 << 40;
                p.chunk(STRUCTURED, head, &[]);
            }),
            ("a reply to an empty slot", |p, r| {
                let mut head = chunk(&r, ChunkKind::None, 0);
                head.cookie ^= 1;
                p.chunk(STRUCTURED, head, &[]);
            }),
            ("a simple reply to nobody", |p, r| p.simple(!r.cookie, None)),
            ("an extended head", |p, r| {
                p.chunk(EXTENDED, chunk(&r, ChunkKind::None, 0), &[]);
            }),
            ("one byte too many", |p, r| {
                say(p, &r, ChunkKind::Data, &data(r.at, 4097));
            }),
            ("4 GiB of data", |p, r| {
                let mut head = chunk(&r, ChunkKind::Data, 0);
                head.len = u64::from(u32::MAX);
                p.chunk(STRUCTURED, head, &data(r.at, 4096));
            }),
            ("data of no length", |p, r| {
                say(p, &r, ChunkKind::Data, &data(r.at, 0));
            }),
            ("data without an offset", |p, r| {
                say(p, &r, ChunkKind::Data, &[0; 4]);
            }),
            ("data from before", |p, r| {
                say(p, &r, ChunkKind::Data, &data(r.at - 1, 4096));
            }),
            ("data from behind", |p, r| {
                say(p, &r, ChunkKind::Data, &data(r.at + 1, 4096));
            }),
            ("data from the end of the world", |p, r| {
                say(p, &r, ChunkKind::Data, &data(u64::MAX, 4096));
            }),
            ("the same data twice", |p, r| {
                let payload = data(r.at, 4096);
                let mut head = chunk(&r, ChunkKind::Data, payload.len());
                head.chunk = Chunk::More;
                p.chunk(STRUCTURED, head, &payload);
                p.chunk(STRUCTURED, head, &payload);
            }),
            ("half of the data", |p, r| {
                say(p, &r, ChunkKind::Data, &data(r.at, 2048));
            }),
            ("data cut short", |p, r| {
                let head = chunk(&r, ChunkKind::Data, 4104);
                p.chunk(STRUCTURED, head, &data(r.at, 100));
            }),
            ("nothing at all", |p, r| say(p, &r, ChunkKind::None, &[])),
            ("nothing, and more to come", |p, r| {
                let mut head = chunk(&r, ChunkKind::None, 0);
                head.chunk = Chunk::More;
                p.chunk(STRUCTURED, head, &[]);
            }),
            ("nothing, with a payload", |p, r| {
                say(p, &r, ChunkKind::None, &[1]);
            }),
            ("a hole of no length", |p, r| {
                let mut payload = r.at.to_be_bytes().to_vec();
                payload.extend([0; 4]);
                say(p, &r, ChunkKind::Hole, &payload);
            }),
            ("a hole as large as can be", |p, r| {
                let mut payload = r.at.to_be_bytes().to_vec();
                payload.extend([0xff; 4]);
                say(p, &r, ChunkKind::Hole, &payload);
            }),
            ("a hole of eleven bytes", |p, r| {
                say(p, &r, ChunkKind::Hole, &[0; 11]);
            }),
            ("a status", |p, r| {
                say(p, &r, ChunkKind::Status, &[0; 12]);
            }),
            ("a chunk of no known kind", |p, r| {
                say(p, &r, ChunkKind::Other(77), &[]);
            }),
            ("an error that is none", |p, r| {
                say(p, &r, ChunkKind::Error, &[0; 6]);
            }),
            ("an error with a text that is not all there", |p, r| {
                say(p, &r, ChunkKind::Error, &[0, 0, 0, 5, 0xff, 0xff]);
            }),
            ("an error of a megabyte", |p, r| {
                say(p, &r, ChunkKind::Error, &vec![1; 1 << 20]);
            }),
            ("an error of three bytes", |p, r| {
                say(p, &r, ChunkKind::Error, &[0; 3]);
            }),
        ],
    );
}

#[test]
fn lies_in_extended_answers_fail_a_read() {
    all_fail(
        EXTENDED,
        Asked::Read,
        &[
            ("a simple reply", |p, r| p.simple(r.cookie, None)),
            ("a structured head", |p, r| {
                say(p, &r, ChunkKind::None, &[]);
                p.send(&[0; 64]);
            }),
            ("2^64-1 bytes", |p, r| {
                let mut head = chunk(&r, ChunkKind::Data, 0);
                head.len = u64::MAX;
                p.chunk(EXTENDED, head, &data(r.at, 4096));
            }),
            ("an error of 2^63 bytes", |p, r| {
                let mut head = chunk(&r, ChunkKind::Error, 0);
                head.len = 1 << 63;
                p.chunk(EXTENDED, head, &[]);
            }),
        ],
    );
}

#[test]
fn lies_in_simple_answers_fail_a_read() {
    all_fail(
        Form::Simple,
        Asked::Read,
        &[
            ("a chunk", |p, r| say(p, &r, ChunkKind::None, &[])),
            ("data cut short", |p, r| {
                p.simple(r.cookie, None);
                p.send(&[1; 4095]);
            }),
            ("the same answer twice", |p, r| {
                p.simple(r.cookie, Some(NbdError::Io));
                p.simple(r.cookie, Some(NbdError::Io));
            }),
        ],
    );
}

#[test]
fn lies_in_answers_to_a_write_fail_it() {
    all_fail(
        STRUCTURED,
        Asked::Write,
        &[
            ("data", |p, r| {
                say(p, &r, ChunkKind::Data, &data(r.at, 4096));
            }),
            ("a hole", |p, r| say(p, &r, ChunkKind::Hole, &[0; 12])),
            ("a status", |p, r| say(p, &r, ChunkKind::Status, &[0; 12])),
        ],
    );
}

/// A status chunk's payload: context, then 32-bit lengths and flags.
fn status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    for (len, flags) in extents {
        payload.extend(len.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    payload
}

#[test]
fn lies_in_answers_about_status_fail_it() {
    all_fail(
        STRUCTURED,
        Asked::Status,
        &[
            ("of another context", |p, r| {
                say(p, &r, ChunkKind::Status, &status(CONTEXT + 1, &[(4096, 0)]));
            }),
            ("of no extent", |p, r| {
                say(p, &r, ChunkKind::Status, &status(CONTEXT, &[]));
            }),
            ("of an extent without length", |p, r| {
                say(p, &r, ChunkKind::Status, &status(CONTEXT, &[(0, 0)]));
            }),
            ("of half an extent", |p, r| {
                let payload = status(CONTEXT, &[(4096, 0)]);
                say(p, &r, ChunkKind::Status, &payload[..9]);
            }),
            ("of a megabyte", |p, r| {
                say(p, &r, ChunkKind::Status, &vec![0; 1 << 20]);
            }),
            ("of nothing", |p, r| say(p, &r, ChunkKind::None, &[])),
            ("twice", |p, r| {
                let payload = status(CONTEXT, &[(4096, 0)]);
                let mut head = chunk(&r, ChunkKind::Status, payload.len());
                head.chunk = Chunk::More;
                p.chunk(STRUCTURED, head, &payload);
                p.chunk(STRUCTURED, head, &payload);
            }),
            ("by data", |p, r| {
                say(p, &r, ChunkKind::Data, &data(r.at, 4096));
            }),
            ("by a simple reply", |p, r| p.simple(r.cookie, None)),
            ("with a count of more than there are", |p, r| {
                let mut payload = CONTEXT.to_be_bytes().to_vec();
                payload.extend(u32::MAX.to_be_bytes());
                payload.extend([1; 16]);
                say(p, &r, ChunkKind::StatusExtended, &payload);
            }),
        ],
    );
}

#[test]
fn errors_are_handed_on_and_the_connection_lives() {
    for (told, expected) in [
        (NbdError::Perm, libc::EPERM),
        (NbdError::NoSpc, libc::ENOSPC),
        (NbdError::Inval, libc::EINVAL),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let server = serve(dir.path(), move |p| {
            p.shake_until(STRUCTURED, None);
            let mut first = true;
            while let Some((request, _)) = p.request(STRUCTURED) {
                if first {
                    let mut payload = told.number().to_be_bytes().to_vec();
                    payload.extend([0, 4]);
                    payload.extend(b"what");
                    // Of a kind nobody knows: the beginning says enough.
                    payload.extend([9; 3]);
                    let kind = ChunkKind::Other(1 << 15 | 99);
                    let mut head = chunk(&request, kind, payload.len());
                    head.chunk = Chunk::More;
                    p.chunk(STRUCTURED, head, &payload);
                }
                first = false;
                say(p, &request, ChunkKind::None, &[]);
            }
        });
        let mut bench = bench();
        let node = bench.open(nbd::node(nbd::options(&server)));
        let outcome = ask(&mut bench, node, Asked::Write);
        assert_eq!(outcome, Err(Errno(expected)));
        assert_eq!(ask(&mut bench, node, Asked::Write), Ok(()));
    }
}

/// Answers reads in pieces, the last first, byte by byte.
#[test]
fn an_answer_in_crumbs_is_put_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = serve(dir.path(), |p| {
        p.shake_until(EXTENDED, None);
        while let Some((request, _)) = p.request(EXTENDED) {
            let half = request.len as usize / 2;
            let mut bytes = Vec::new();
            let mut hole = (request.at).to_be_bytes().to_vec();
            hole.extend((half as u32).to_be_bytes());
            let payload = data(request.at + half as u64, half);
            let mut first = chunk(&request, ChunkKind::Data, payload.len());
            first.chunk = Chunk::More;
            first.encode(EXTENDED, &mut bytes);
            bytes.extend(payload);
            chunk(&request, ChunkKind::Hole, hole.len()).encode(EXTENDED, &mut bytes);
            bytes.extend(hole);
            for byte in bytes {
                p.send(&[byte]);
            }
        }
    });
    let mut bench = bench();
    let node = bench.open(nbd::node(nbd::options(&server)));
    let read = bench.read(node, 512, 4096);
    assert!(read[..2048].iter().all(|&byte| byte == 0));
    assert!(read[2048..].iter().all(|&byte| byte == 0x5a));
}

#[test]
fn an_oldstyle_server_serves() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = serve(dir.path(), |p| {
        oldstyle(p, SIZE, 1);
        while let Some((request, _)) = p.request(Form::Simple) {
            p.simple(request.cookie, None);
            if request.command == Command::Read {
                p.send(&vec![3; request.len as usize]);
            }
        }
    });
    let mut bench = bench();
    let mut options = nbd::options(&server);
    options.export = String::new();
    let node = bench.open(nbd::node(options));
    assert_eq!(bench.read(node, 100, 5000), vec![3; 5000]);
    bench.write(node, 0, &[1; 512]).expect("written");
    // It has neither flush nor trim: both are done by doing nothing.
    for kind in [Kind::Flush, Kind::Discard] {
        bench.plain(node, kind, span(0, 512)).expect("done");
    }
}

#[test]
fn a_server_that_says_nothing_is_left_by_cancel() {
    for asked in [Kind::Read, Kind::Write(Durability::Cached)] {
        let dir = tempfile::tempdir().expect("a directory");
        let (done, wait) = std::sync::mpsc::channel::<()>();
        // Does not even read what it is sent.
        let server = serve(dir.path(), move |p| {
            p.shake_until(EXTENDED, None);
            let _ = wait.recv();
        });
        let mut bench = bench();
        let node = bench.open(nbd::node(nbd::options(&server)));
        let mem = Mem::zeroed(SIZE as usize).expect("memory");
        for token in 0..100 {
            bench.start(node, asked, span(0, SIZE), &mem, token);
        }
        let mut ends = Vec::new();
        bench.pump(&mut ends);
        assert!(ends.is_empty());
        nbd::driver(&bench, node).cancel();
        for _ in 0..100 {
            assert_eq!(bench.wait().1, Err(Errno::IO));
        }
        drop(done);
    }
}
