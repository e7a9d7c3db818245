//! The NBD client against real servers: what is read is what was written, status is what nbdinfo says, refusals are in
//! QEMU's words.

use crate::support;
use blockgraph::driver::file::OpenMode;
use blockgraph::driver::nbd::client::Server;
use blockgraph::graph::open::open;
use blockgraph::status::Content;
use blockgraph::{Mode, NodeId};
use ring::Choice;
use std::path::Path;
use support::{Bench, image, model, modes, nbd, pki, qemu, span};

/// A disk that is not a multiple of 4096 bytes.
const SIZE: u64 = (1 << 20) + 512;

fn bench(mode: Mode) -> Bench {
    Bench::new(Choice::Threads, mode)
}

/// The model in every mode, on a fresh image each.
fn everywhere(seed: u64, requests: usize, serve: impl Fn(&Path) -> (Server, nbd::Running)) {
    for mode in modes(seed) {
        println!("{mode:?} seed {seed}");
        let dir = tempfile::tempdir().expect("a directory");
        image(dir.path(), SIZE);
        let (server, _running) = serve(dir.path());
        let mut bench = bench(mode);
        let node = bench.open(nbd::node(nbd::options(&server)));
        model::check(&mut bench, node, seed, SIZE, requests);
    }
}

#[test]
fn a_disk_of_qemu_nbd_over_a_unix_socket_equals_the_model() {
    everywhere(11, 250, |dir| {
        let server = nbd::unix(dir);
        let running = nbd::qemu_nbd(&server, &dir.join("disk.raw"), "raw", &[]);
        (server, running)
    });
}

#[test]
fn a_disk_of_qemu_nbd_over_tcp_equals_the_model() {
    everywhere(12, 250, |dir| {
        let server = nbd::tcp();
        let running = nbd::qemu_nbd(&server, &dir.join("disk.raw"), "raw", &[]);
        (server, running)
    });
}

#[test]
fn a_disk_of_qemu_storage_daemon_equals_the_model() {
    everywhere(13, 250, |dir| {
        let server = nbd::unix(dir);
        let disk = dir.join("disk.raw");
        let file = format!(
            "driver=file,node-name=n,filename={},discard=unmap",
            disk.display()
        );
        let listen = format!("addr.type=unix,addr.path={server}");
        let export = "nbd,id=e,node-name=n,name=disk,writable=on";
        let args = [
            "--blockdev",
            &file,
            "--nbd-server",
            &listen,
            "--export",
            export,
        ];
        let running = nbd::start(&server, "qemu-storage-daemon", &args);
        (server, running)
    });
}

#[test]
fn a_disk_over_tls_equals_the_model() {
    let keys = tempfile::tempdir().expect("a directory");
    pki::authority(keys.path());
    let object = format!(
        "tls-creds-x509,id=t,dir={},endpoint=server,verify-peer=on",
        keys.path().display()
    );
    for (seed, mode) in [(14, Mode::Fast), (15, Mode::Mixed(15))] {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = image(dir.path(), SIZE);
        let server = nbd::tcp();
        let more = ["--object", &object, "--tls-creds", "t"];
        let _running = nbd::qemu_nbd(&server, &disk, "raw", &more);
        let mut options = nbd::options(&server);
        options.tls = nbd::tls(keys.path(), Some("localhost"));
        let mut bench = bench(mode);
        let node = bench.open(nbd::node(options));
        model::check(&mut bench, node, seed, SIZE, 250);
    }
}

/// nbdkit's memory disk with its ways of being a difficult server.
#[test]
fn disks_of_difficult_servers_equal_the_model() {
    if !nbd::has_nbdkit() {
        return;
    }
    let policy = "--filter=blocksize-policy";
    let variants: &[&[&str]] = &[
        &["-n"],
        &["-n", "--no-sr"],
        &["-n", "--mask-handshake=0"],
        &["-n", "--mask-handshake=1"],
        &["-n", "--filter=nozero"],
        &["-n", "--filter=nozero", "zeromode=notrim"],
        &["-n", "--filter=fua", "fuamode=native"],
    ];
    let blocks: &[&[&str]] = &[
        &["blocksize-minimum=4096", "blocksize-error-policy=error"],
        &[
            "blocksize-minimum=65536",
            "blocksize-preferred=65536",
            "blocksize-error-policy=error",
        ],
        &[
            "blocksize-minimum=1",
            "blocksize-preferred=512",
            "blocksize-maximum=65536",
            "blocksize-error-policy=error",
        ],
    ];
    let size = (1 << 20).to_string();
    for variant in variants {
        let mut args = variant.to_vec();
        args.extend(["-f", "-U", "SOCKET", "memory", &size]);
        // Filters take their options after the plugin.
        let (mut front, behind): (Vec<_>, Vec<_>) =
            args.into_iter().partition(|arg| !arg.contains("mode="));
        front.extend(behind);
        difficult(&front);
    }
    for block in blocks {
        let mut args = vec!["-n", policy, "-f", "-U", "SOCKET", "memory", &size];
        args.extend(*block);
        difficult(&args);
    }
}

fn difficult(args: &[&str]) {
    println!("nbdkit {args:?}");
    let dir = tempfile::tempdir().expect("a directory");
    let server = nbd::unix(dir.path());
    let socket = server.to_string();
    let args: Vec<&str> = args
        .iter()
        .map(|arg| {
            if *arg == "SOCKET" {
                socket.as_str()
            } else {
                *arg
            }
        })
        .collect();
    let _running = nbd::start(&server, "nbdkit", &args);
    let mut bench = bench(Mode::Mixed(16));
    let mut options = nbd::options(&server);
    // nbdkit has one disk by whatever name; an oldstyle server knows none.
    options.export = String::new();
    let node = bench.open(nbd::node(options));
    model::check(&mut bench, node, 16, 1 << 20, 150);
}

/// Whole of a node's status as runs of (length, base:allocation flags).
fn runs(bench: &mut Bench, node: NodeId, size: u64) -> Vec<(u64, u64)> {
    let graph = bench.current.get();
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let asked = span(at, size - at);
        let status = bench.control.run(&graph, node, move |io| async move {
            io.status(node, asked).await
        });
        let status = status.expect("a ring").expect("a status");
        let hole = u64::from(!status.is_mapped());
        let flags = hole
            | if status.content == Content::Zero {
                2
            } else {
                0
            };
        match found.last_mut() {
            Some(last) if last.1 == flags => last.0 += status.len,
            _ => found.push((status.len, flags)),
        }
        at += status.len;
    }
    found
}

#[test]
fn status_is_what_nbdinfo_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    qemu::ok(
        dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "base.qcow2", "8M"],
    );
    let writes = [
        "write 0 64k",
        "write -z 1M 256k",
        "write 3M 1M",
        "write -z -u 3200k 128k",
        "write 7M 512",
    ];
    qemu::io(dir, "base.qcow2", &writes);
    let server = nbd::unix(dir);
    let _running = nbd::qemu_nbd(&server, &dir.join("base.qcow2"), "qcow2", &[]);
    let uri = format!("nbd+unix:///disk?socket={server}");
    let map = qemu::ok(dir, "nbdinfo", &["--map=base:allocation", &uri]);
    let mut expected: Vec<(u64, u64)> = Vec::new();
    for line in map.lines() {
        let mut words = line.split_whitespace().skip(1);
        let mut number = || words.next().and_then(|w| w.parse().ok()).expect("a number");
        let (len, flags) = (number(), number());
        match expected.last_mut() {
            Some(last) if last.1 == flags => last.0 += len,
            _ => expected.push((len, flags)),
        }
    }
    assert!(expected.len() > 4, "{expected:?}");
    let mut bench = bench(Mode::Fast);
    let node = bench.open(nbd::node(nbd::options(&server)));
    assert_eq!(runs(&mut bench, node, 8 << 20), expected);
}

#[test]
fn other_contexts_are_told_as_qemu_tells_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    qemu::ok(
        dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"],
    );
    qemu::ok(dir, "qemu-img", &["bitmap", "--add", "disk.qcow2", "b0"]);
    qemu::io(dir, "disk.qcow2", &["write 128k 64k"]);
    let server = nbd::unix(dir);
    let more = ["-A", "-B", "b0", "-r"];
    let _running = nbd::qemu_nbd(&server, &dir.join("disk.qcow2"), "qcow2", &more);
    let told = |context: &str| {
        let mut options = nbd::options(&server);
        options.mode = OpenMode::Auto;
        options.context = Some(context.to_owned());
        let mut bench = bench(Mode::Fast);
        let node = bench.open(nbd::node(options));
        runs(&mut bench, node, 1 << 20)
    };
    // Dirty is bit 0, which stands where "hole" does.
    let dirty = [(128 << 10, 0), (64 << 10, 1), ((1 << 20) - (192 << 10), 0)];
    assert_eq!(told("qemu:dirty-bitmap:b0"), dirty);
    assert_eq!(told("qemu:allocation-depth"), dirty);
}

/// What opening says.
fn refusal(options: blockgraph::driver::nbd::client::NbdOptions) -> String {
    let mut bench = bench(Mode::Fast);
    let error = open(&bench.current, nbd::node(options), &mut bench.control);
    let error = error.expect_err("refused");
    match error.hint() {
        Some(hint) => format!("{error}\n{hint}"),
        None => error.to_string(),
    }
}

#[test]
fn refusals_are_in_the_words_of_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    let nobody = Server::Unix(dir.path().join("nobody"));
    assert_eq!(
        refusal(nbd::options(&nobody)),
        format!("Failed to connect to '{nobody}': No such file or directory")
    );
    let nobody = nbd::tcp();
    assert_eq!(
        refusal(nbd::options(&nobody)),
        format!("Failed to connect to '{nobody}': Connection refused")
    );
    let running = nbd::qemu_nbd(&server, &disk, "raw", &[]);
    let with = |change: fn(&mut blockgraph::driver::nbd::client::NbdOptions)| {
        let mut options = nbd::options(&server);
        change(&mut options);
        refusal(options)
    };
    assert_eq!(
        with(|o| o.export = "other".into()),
        "Requested export not available\nserver reported: export 'other' not present"
    );
    assert_eq!(
        with(|o| o.context = Some("foo".into())),
        "requested x-dirty-bitmap foo not found"
    );
    assert_eq!(
        with(|o| o.export = "x".repeat(4097)),
        "export name too long to send to server"
    );
    let Server::Inet(inet) = nbd::tcp() else {
        panic!("an internet address")
    };
    let mut inet = inet;
    inet.port = "foo".into();
    assert_eq!(
        refusal(nbd::options(&Server::Inet(inet))),
        "address resolution failed for 127.0.0.1:foo: Servname not supported for ai_socktype"
    );
    drop(running);
    let _running = nbd::qemu_nbd(&server, &disk, "raw", &["-r"]);
    assert_eq!(
        with(|_| ()),
        "request on write denied without write permission"
    );
    let mut options = nbd::options(&server);
    options.mode = OpenMode::Auto;
    let mut bench = bench(Mode::Fast);
    let node = bench.open(nbd::node(options));
    let graph = bench.current.get();
    let access = graph.node(node).map(|node| node.common().access);
    assert_eq!(access, Some(blockgraph::graph::Access::ReadOnly));
}

#[test]
fn tls_mismatches_are_in_the_words_of_qemu() {
    let keys = tempfile::tempdir().expect("a directory");
    pki::authority(keys.path());
    let strangers = tempfile::tempdir().expect("a directory");
    pki::authority(strangers.path());
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), SIZE);
    let server = nbd::unix(dir.path());
    let with_tls = |keys: &Path, name: &str| {
        let mut options = nbd::options(&server);
        options.tls = nbd::tls(keys, Some(name));
        options
    };
    let running = nbd::qemu_nbd(&server, &disk, "raw", &[]);
    assert_eq!(
        refusal(with_tls(keys.path(), "localhost")),
        "Denied by server for option 5 (starttls)\nserver reported: TLS not configured"
    );
    drop(running);
    let object = format!(
        "tls-creds-x509,id=t,dir={},endpoint=server",
        keys.path().display()
    );
    let more = ["--object", &object, "--tls-creds", "t"];
    let _running = nbd::qemu_nbd(&server, &disk, "raw", &more);
    let plain = refusal(nbd::options(&server));
    assert!(
        plain.starts_with("TLS negotiation required before option ")
            && plain.contains("\nDid you forget a valid tls-creds?\nserver reported: Option 0x"),
        "{plain}"
    );
    assert_eq!(
        refusal(with_tls(keys.path(), "wrong")),
        "Certificate does not match the hostname wrong"
    );
    assert_eq!(
        refusal(with_tls(strangers.path(), "localhost")),
        "The certificate hasn't got a known issuer"
    );
    let mut other = with_tls(keys.path(), "localhost");
    other.export = "other".into();
    assert_eq!(
        refusal(other),
        "Requested export not available\nserver reported: export 'other' not present"
    );
    let mut bench = bench(Mode::Fast);
    bench.open(nbd::node(with_tls(keys.path(), "localhost")));
}
