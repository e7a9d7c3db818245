//! Character devices of ours and of the real qemu-storage-daemon: shown the same, and doing the same.

mod daemon;

use daemon::{Daemon, Program};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const BOTH: [Program; 2] = [Program::Ours, Program::Theirs];

/// What `query-chardev` says, by label, without what differs between two runs.
fn shown(daemon: &mut Daemon) -> BTreeMap<String, String> {
    let answer = daemon.command("query-chardev", json!({}));
    let all = answer["return"].as_array().expect("a list").clone();
    let one = |chardev: &Value| {
        let label = chardev["label"].as_str().expect("a label").to_owned();
        let filename = chardev["filename"].as_str().expect("a name");
        let filename = filename.replace(&daemon.dir().display().to_string(), "DIR");
        let open = chardev["frontend-open"].as_bool().expect("a bool");
        (label, format!("{} {open}", without_ports(&filename)))
    };
    all.iter().map(one).collect()
}

/// Port numbers after an address's last colon become N.
fn without_ports(name: &str) -> String {
    if !name.contains("tcp:") {
        return name.to_owned();
    }
    let parts = name.split(' ').map(|part| match part.rsplit_once(':') {
        Some((before, after)) => {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}:N{rest}")
        }
        None => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join(" ")
}

#[test]
fn every_kind_is_shown_as_qemu_storage_daemon_shows_it() {
    let table = BOTH.map(|program| {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = tcp.local_addr().expect("bound").port();
        let abstract_name = format!("virtioblkd-test-{}-{program:?}", std::process::id());
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let chardevs = [
            "null,id=n".to_owned(),
            "null,id=n2".to_owned(),
            format!("file,id=f,path={}", path("f")),
            "ringbuf,id=r,size=16".to_owned(),
            "memory,id=m".to_owned(),
            "stdio,id=s".to_owned(),
            format!("socket,id=a,path={abstract_name},abstract=on,server=on,wait=off"),
            format!("socket,id=a2,path={abstract_name}2,abstract=on,tight=off,server=on,wait=off"),
            "socket,id=t1,host=127.0.0.1,port=0,server=on,wait=off".to_owned(),
            "socket,id=t3,host=,port=0,server=on,wait=off,ipv4=on,ipv6=off".to_owned(),
            format!("socket,id=t5,host=127.0.0.1,port={port}"),
            format!("socket,id=u,path={},server=on,wait=off", path("u")),
            format!("socket,id=rc,path={},reconnect-ms=60000", path("nosuch")),
        ];
        let mut args = Vec::new();
        for chardev in chardevs {
            args.extend(["--chardev".to_owned(), chardev]);
        }
        for monitor in ["n2", "r", "u", "rc"] {
            args.extend(["--monitor".to_owned(), monitor.to_owned()]);
        }
        let mut daemon = Daemon::start(program, &args);
        let mut seen = vec![shown(&mut daemon)];
        let mut client = UnixStream::connect(path("u")).expect("it listens");
        assert!(client.read(&mut [0; 10]).expect("a greeting") > 0);
        seen.push(shown(&mut daemon));
        for seen in &mut seen {
            for name in seen.values_mut() {
                *name = name
                    .replace(&path(""), "DIR/")
                    .replace(&abstract_name, "NAME");
            }
        }
        daemon.quit();
        assert!(!Path::new(&path("u")).exists());
        seen
    });
    let [ours, theirs] = table;
    assert_eq!(ours, theirs);
}

#[test]
fn ring_buffers_are_read_and_written_as_in_qemu_storage_daemon() {
    let script = [
        // The end of the greeting: what is before it has the version in it.
        ("ringbuf-read", json!({"device": "r", "size": 4})),
        ("ringbuf-read", json!({"device": "r", "size": 40})),
        ("ringbuf-read", json!({"device": "r", "size": 40})),
        ("ringbuf-read", json!({"device": "r", "size": 0})),
        ("ringbuf-read", json!({"device": "r", "size": -1})),
        ("ringbuf-read", json!({"device": "zz", "size": 1})),
        ("ringbuf-read", json!({"device": "n", "size": 1})),
        ("ringbuf-write", json!({"device": "m", "data": "héllo"})),
        (
            "ringbuf-write",
            json!({"device": "m", "data": "aGVsbG8=", "format": "base64"}),
        ),
        (
            "ringbuf-write",
            json!({"device": "m", "data": "aGVs bG8=", "format": "base64"}),
        ),
        (
            "ringbuf-write",
            json!({"device": "m", "data": "aGVsbG8", "format": "base64"}),
        ),
        (
            "ringbuf-write",
            json!({"device": "m", "data": "!!", "format": "base64"}),
        ),
        (
            "ringbuf-write",
            json!({"device": "m", "data": "x", "format": "foo"}),
        ),
        (
            "ringbuf-read",
            json!({"device": "m", "size": 100, "format": "base64"}),
        ),
        (
            "ringbuf-write",
            json!({"device": "m", "data": "gP/+", "format": "base64"}),
        ),
        ("ringbuf-read", json!({"device": "m", "size": 100})),
        ("ringbuf-write", json!({"device": "zz", "data": "x"})),
        ("ringbuf-write", json!({"device": "n", "data": "x"})),
        ("ringbuf-write", json!({"device": "m", "data": ""})),
        (
            "ringbuf-write",
            json!({"device": "m", "data": "0123456789abcdefgh"}),
        ),
        ("ringbuf-read", json!({"device": "m", "size": 10})),
    ];
    let args = [
        "--chardev",
        "null,id=n",
        "--chardev",
        "ringbuf,id=r,size=16",
    ];
    let more = ["--chardev", "memory,id=m,size=16", "--monitor", "r"];
    let args: Vec<String> = args.iter().chain(&more).map(|a| (*a).to_owned()).collect();
    let [ours, theirs] = BOTH.map(|program| {
        let mut daemon = Daemon::start(program, &args);
        let answer = |(name, arguments): &(&str, Value)| daemon.command(name, arguments.clone());
        script.iter().map(answer).collect::<Vec<_>>()
    });
    for ((row, ours), theirs) in script.iter().zip(ours).zip(theirs) {
        assert_eq!(ours, theirs, "{row:?}");
    }
}

#[test]
fn start_up_waits_for_a_client_if_it_is_told_to_and_says_so() {
    for program in BOTH {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("w");
        let chardev = format!("socket,id=w,path={},server=on", path.display());
        let args = ["--chardev", &chardev, "--monitor", "w", "--blockdev", "x"];
        let mut waiting = daemon::spawn(program, &args);
        let notice = daemon::first_line_of_stderr(&mut waiting);
        let shown = format!("disconnected:unix:{},server=on", path.display());
        let expected = format!(
            "{}: --chardev {chardev}: info: QEMU waiting for connection on: {shown}",
            program.name()
        );
        assert_eq!(notice, expected);
        // Only then does it come to what is wrong.
        let client = UnixStream::connect(&path).expect("it listens");
        let status = waiting.wait().expect("it ends");
        assert_eq!(status.code(), Some(1));
        drop(client);
    }
}

#[test]
fn waiting_for_a_client_ends_with_a_signal() {
    let dir = tempfile::tempdir().expect("a directory");
    let chardev = format!(
        "socket,id=w,path={},server=on",
        dir.path().join("w").display()
    );
    let mut waiting = daemon::spawn(Program::Ours, &["--chardev", &chardev]);
    daemon::first_line_of_stderr(&mut waiting);
    daemon::terminate(&waiting);
    assert_eq!(waiting.wait().expect("it ends").code(), Some(1));
    assert!(!dir.path().join("w").exists());
}

#[test]
fn a_monitor_that_connects_itself_comes_back_after_the_other_end_went_away() {
    for program in BOTH {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("there");
        let chardev = format!("socket,id=x,path={},reconnect-ms=20", path.display());
        let args = ["--chardev", &chardev, "--monitor", "x"].map(str::to_owned);
        let mut daemon = Daemon::start(program, &args);
        let listener = UnixListener::bind(&path).expect("a socket");
        for _ in 0..3 {
            let (stream, _) = listener.accept().expect("it connects");
            let mut client = daemon::Client::new(stream);
            assert!(client.next()["QMP"].is_object());
            // Negotiation begins anew each time.
            let early = client.command("query-version", json!({}));
            assert_eq!(early["error"]["class"], "CommandNotFound");
            assert_eq!(
                client.command("qmp_capabilities", json!({}))["return"],
                json!({})
            );
        }
        daemon.quit();
    }
}

#[test]
fn monitors_over_tcp_inherited_sockets_and_files_work() {
    for program in BOTH {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("passed")).expect("a socket");
        let input = dir.path().join("in");
        let output = dir.path().join("out");
        std::fs::write(
            &input,
            "{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-block-exports\"}",
        )
        .expect("written");
        let file = format!(
            "file,id=f,path={},input-path={}",
            output.display(),
            input.display()
        );
        let tcp = "socket,id=t,host=127.0.0.1,port=0,server=on,wait=off";
        let args = [
            "--chardev",
            tcp,
            "--monitor",
            "t",
            "--chardev",
            &file,
            "--monitor",
            "f",
        ];
        let fd = [
            "--chardev",
            "socket,id=p,fd=3,server=on,wait=off",
            "--monitor",
            "p",
        ];
        let args: Vec<String> = args.iter().chain(&fd).map(|a| (*a).to_owned()).collect();
        let mut daemon = Daemon::start_with_fd_3(program, &args, listener.into());
        let chardevs = daemon.command("query-chardev", json!({}));
        let chardevs = chardevs["return"].as_array().expect("a list");
        let tcp = chardevs.iter().find(|c| c["label"] == "t").expect("there");
        let port = tcp["filename"].as_str().expect("a name");
        let port = port.trim_end_matches(",server=on").rsplit(':').next();
        let port: u16 = port.expect("a port").parse().expect("a number");
        let mut client =
            daemon::Client::new(TcpStream::connect(("127.0.0.1", port)).expect("it listens"));
        assert!(client.next()["QMP"].is_object());
        let passed = UnixStream::connect(dir.path().join("passed")).expect("it listens");
        assert!(daemon::Client::new(passed).next()["QMP"].is_object());
        let expected = "{\"return\": {}}\r\n{\"return\": []}\r\n";
        daemon::eventually(|| {
            let text = std::fs::read_to_string(&output).expect("there");
            text.ends_with(expected)
        });
        daemon.quit();
    }
}

#[test]
fn one_client_at_a_time_is_let_in_and_the_next_waits() {
    for program in BOTH {
        let mut daemon = Daemon::start(program, &[]);
        let mut second = daemon::Client::new(daemon.connect());
        // The first one is served as ever.
        assert!(daemon.command("query-version", json!({}))["return"].is_object());
        assert!(!second.has_something());
        daemon.hang_up();
        assert!(second.next()["QMP"].is_object());
    }
}

#[test]
fn standard_input_and_output_are_a_monitor_and_its_end_is_not_ours() {
    for program in BOTH {
        let mut child =
            daemon::spawn_piped(program, &["--chardev", "stdio,id=s", "--monitor", "s"]);
        let mut out = daemon::Lines::new(child.stdout.take().expect("piped"));
        assert!(out.next()["QMP"].is_object());
        let mut input = child.stdin.take().expect("piped");
        use std::io::Write;
        input
            .write_all(b"{\"execute\":\"qmp_capabilities\"}")
            .expect("it reads");
        assert_eq!(out.next(), json!({"return": {}}));
        drop(input);
        // It goes on without us.
        assert!(child.try_wait().expect("a child").is_none());
        daemon::terminate(&child);
        assert!(child.wait().expect("it ends").success());
    }
}
