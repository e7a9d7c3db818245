//! Real NBD clients against our server: libnbd's and QEMU's, over unix sockets, TCP and an inherited descriptor, in the
//! clear and over TLS.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::daemon::Kind;

const SIZE: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon that serves NBD, and where it has its files.
struct Served {
    child: Child,
    dir: tempfile::TempDir,
}

impl Served {
    /// `line` is the rest of the command line after the nodes `f` and `n` (raw on `f`); DIR stands for the directory.
    fn start(line: &str) -> Served {
        Served::start_with(line, |_| {})
    }

    fn start_with(line: &str, prepare: impl FnOnce(&mut Command)) -> Served {
        let dir = tempfile::tempdir().unwrap();
        fill(&dir.path().join("disk"));
        let path = dir.path().to_str().unwrap();
        let nodes = "--blockdev file,node-name=f,filename=DIR/disk,discard=unmap \
                     --blockdev raw,node-name=n,file=f,discard=unmap --pidfile DIR/pid";
        let line = format!("{nodes} {line}").replace("DIR", path);
        let mut command = Command::new(Kind::Virtioblkd.program().unwrap());
        command.args(line.split_whitespace()).stdin(Stdio::null());
        prepare(&mut command);
        let child = command.spawn().unwrap();
        let mut served = Served { child, dir };
        let until = Instant::now() + PATIENCE;
        while !served.path("pid").exists() {
            assert_eq!(served.child.try_wait().unwrap(), None, "it ended");
            assert!(Instant::now() < until, "it does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        served
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.shown("s"))
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.path("disk")).unwrap()
    }

    /// Ends it in good order.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        assert!(!self.path("s").exists());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It has ended already, or the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Data, holes, and data again.
fn fill(path: &Path) {
    let disk = File::create(path).unwrap();
    disk.set_len(SIZE).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 7) as u8).collect();
    disk.write_all_at(&block, 0).unwrap();
    disk.write_all_at(&block, 3 << 20).unwrap();
    disk.write_all_at(&[9; 512], SIZE - 512).unwrap();
}

const UNIX: &str = "--nbd-server addr.type=unix,addr.path=DIR/s \
    --export nbd,id=e,node-name=n,name=e,writable=on,allocation-depth=on,description=a␣disk \
    --export nbd,id=ro,node-name=n,name=ro";

/// Runs a client; what it printed.
fn client(program: &str, args: &[&str]) -> String {
    let (code, stdout, stderr) = try_client(program, args);
    assert_eq!(code, Some(0), "{program} {args:?}: {stdout}{stderr}");
    stdout
}

fn try_client(program: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new("timeout")
        .args(["60", program])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn exports_are_listed_with_all_they_have() {
    let served = Served::start(UNIX);
    let list = client("nbdinfo", &["--list", "--json", &served.uri("")]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["protocol"], "newstyle-fixed");
    assert_eq!(list["structured"], true);
    let (first, second) = (&list["exports"][0], &list["exports"][1]);
    assert_eq!(first["export-name"], "e");
    assert_eq!(first["description"], "a␣disk");
    assert_eq!(first["export-size"], SIZE);
    let contexts = serde_json::json!(["base:allocation", "qemu:allocation-depth"]);
    assert_eq!(first["contexts"], contexts);
    for can in [
        "cache",
        "df",
        "fast_zero",
        "flush",
        "fua",
        "multi_conn",
        "trim",
        "zero",
    ] {
        assert_eq!(first[format!("can_{can}")], true, "{can}");
    }
    assert_eq!(first["is_read_only"], false);
    assert_eq!(second["export-name"], "ro");
    assert_eq!(second["is_read_only"], true);
    assert_eq!(second["can_trim"], false);
    served.stop();
}

#[test]
fn maps_are_those_of_the_file_itself() {
    let served = Served::start(UNIX);
    for context in ["base:allocation", "qemu:allocation-depth"] {
        let argument = format!("--map={context}");
        let args = |uri: &str| client("nbdinfo", &["--json", &argument, uri]);
        let ours: serde_json::Value = serde_json::from_str(&args(&served.uri("e"))).unwrap();
        // The same file by the original; `[` and `]` let nbdinfo run the server.
        let disk = served.shown("disk");
        let theirs = client(
            "nbdinfo",
            &[
                "--json", &argument, "--", "[", "qemu-nbd", "-r", "-f", "raw", "-A", &disk, "]",
            ],
        );
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        assert_eq!(ours, theirs, "{context}");
    }
    let map = |image: &str| client("qemu-img", &["map", "--output=json", "-f", "raw", image]);
    let extents = |map: String| -> Vec<(u64, u64, bool, bool)> {
        let list: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        let number = |e: &serde_json::Value, name: &str| e[name].as_u64().unwrap();
        let is = |e: &serde_json::Value, name: &str| e[name].as_bool().unwrap();
        let extent = |e| {
            (
                number(e, "start"),
                number(e, "length"),
                is(e, "zero"),
                is(e, "data"),
            )
        };
        list.iter().map(extent).collect()
    };
    assert_eq!(
        extents(map(&served.uri("ro"))),
        extents(map(&served.shown("disk")))
    );
}

#[test]
fn copies_out_are_the_disk_by_every_client_and_with_any_number_of_connections() {
    copies_out(UNIX);
}

#[test]
fn copies_out_are_the_disk_on_an_iothread_too() {
    copies_out(&on_iothread(UNIX));
}

/// The same with every export on one iothread.
fn on_iothread(line: &str) -> String {
    let line = line.replace("--export nbd,", "--export nbd,iothread=io,");
    format!("--object iothread,id=io {line}")
}

fn copies_out(line: &str) {
    let served = Served::start(line);
    let to = served.shown("copy");
    for connections in ["1", "4", "16"] {
        let connections = format!("--connections={connections}");
        for requests in ["--requests=1", "--requests=64"] {
            client("nbdcopy", &[&connections, requests, &served.uri("ro"), &to]);
            assert_eq!(
                fs::read(&to).unwrap(),
                served.disk(),
                "{connections} {requests}"
            );
            fs::remove_file(&to).unwrap();
        }
    }
    client(
        "qemu-img",
        &[
            "convert",
            "-m",
            "8",
            "-f",
            "raw",
            "-O",
            "raw",
            &served.uri("ro"),
            &to,
        ],
    );
    assert_eq!(fs::read(&to).unwrap(), served.disk());
    client(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &served.uri("ro"),
            &served.shown("disk"),
        ],
    );
    client(
        "qemu-img",
        &[
            "bench",
            "-f",
            "raw",
            "-c",
            "2000",
            "-d",
            "64",
            "-s",
            "4096",
            &served.uri("ro"),
        ],
    );
    served.stop();
}

#[test]
fn copies_in_are_written_and_durable_and_holes_stay_holes() {
    copies_in(UNIX);
}

#[test]
fn copies_in_are_written_on_an_iothread_too() {
    copies_in(&on_iothread(UNIX));
}

fn copies_in(line: &str) {
    let served = Served::start(line);
    let from = served.shown("from");
    let source = File::create(&from).unwrap();
    source.set_len(SIZE).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 3) as u8).collect();
    source.write_all_at(&block, 5 << 20).unwrap();
    client("nbdcopy", &["--flush", &from, &served.uri("e")]);
    assert_eq!(served.disk(), fs::read(&from).unwrap());
    let script = [
        "write -P 7 0 64k",
        "write -f -P 3 70000 777",
        "write -z -u 1M 1M",
        "write -z 2M 64k",
        "discard 5M 1M",
        "flush",
        "read -P 7 0 64k",
        "read -P 3 70000 777",
        "read -P 0 1M 1M",
    ];
    let uri = served.uri("e");
    let mut args = vec!["-f", "raw"];
    for command in &script {
        args.extend(["-c", command]);
    }
    args.push(&uri);
    let said = client("qemu-io", &args);
    assert!(
        !said.contains("failed") && !said.contains("error"),
        "{said}"
    );
    let (code, _, refused) = try_client(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 512", &served.uri("ro")],
    );
    assert_ne!(code, Some(0), "{refused}");
    client(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-W",
            "-f",
            "raw",
            "-O",
            "raw",
            &from,
            &served.uri("e"),
        ],
    );
    assert_eq!(served.disk(), fs::read(&from).unwrap());
    served.stop();
}

#[test]
fn tcp_listens_on_every_address_of_a_name() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let served = Served::start(&format!(
        "--nbd-server addr.type=inet,addr.host=localhost,addr.port={port} --export nbd,id=e,node-name=n"
    ));
    let to = served.shown("copy");
    client("nbdcopy", &[&format!("nbd://127.0.0.1:{port}/n"), &to]);
    assert_eq!(fs::read(&to).unwrap(), served.disk());
    assert_eq!(
        client("nbdinfo", &["--size", &format!("nbd://localhost:{port}/n")]).trim(),
        SIZE.to_string()
    );
    served.stop();
}

#[test]
fn an_inherited_descriptor_is_listened_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inherited");
    let listener = UnixListener::bind(&path).unwrap();
    let fd = listener.as_raw_fd();
    // Close-on-exec is off while the child is made, and the number is the same there.
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let served = Served::start(&format!(
        "--nbd-server addr.type=fd,addr.str={fd} --export nbd,id=e,node-name=n,name=x"
    ));
    drop(listener);
    let uri = format!("nbd+unix:///x?socket={}", path.to_str().unwrap());
    let to = served.shown("copy");
    client("nbdcopy", &[&uri, &to]);
    assert_eq!(fs::read(&to).unwrap(), served.disk());
    served.stop();
}

fn openssl(dir: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {line}: {said}");
}

/// A CA, and a pair for either end signed by it, with names as QEMU and libnbd look for them.
fn certificates(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        dir,
        &format!(
            "req -x509 {key} -days 30 -subj /CN=ca -keyout ca-key.pem -out ca-cert.pem \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=keyCertSign"
        ),
    );
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        fs::write(
            dir.join(format!("{name}.ext")),
            format!(
                "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage={usage}\n\
                     subjectAltName=DNS:localhost,IP:127.0.0.1\n"
            ),
        )
        .unwrap();
        openssl(
            dir,
            &format!("req {key} -subj /CN={name} -keyout {name}-key.pem -out {name}.csr"),
        );
        openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 30 \
             -extfile {name}.ext -out {name}-cert.pem"
            ),
        );
    }
}

#[test]
fn with_tls_everything_is_encrypted_and_nothing_else_is_served() {
    encrypted("");
}

#[test]
fn an_iothread_serves_encrypted_connections_too() {
    encrypted(",iothread=io");
}

fn encrypted(iothread: &str) {
    let certs = tempfile::tempdir().unwrap();
    certificates(certs.path());
    let strangers = tempfile::tempdir().unwrap();
    certificates(strangers.path());
    let path = certs.path().to_str().unwrap();
    let served = Served::start(&format!(
        "--object iothread,id=io --object tls-creds-x509,id=t,dir={path},endpoint=server \
         --nbd-server addr.type=unix,addr.path=DIR/s,tls-creds=t \
         --export nbd,id=e,node-name=n,name=e,writable=on{iothread}"
    ));
    let uri = |dir: &str| {
        let socket = served.shown("s");
        format!("nbds+unix://localhost/e?socket={socket}&tls-certificates={dir}")
    };
    let to = served.shown("copy");
    client("nbdcopy", &["--connections=4", &uri(path), &to]);
    assert_eq!(fs::read(&to).unwrap(), served.disk());
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=e,tls-creds=c,tls-hostname=localhost",
        served.shown("s")
    );
    let creds = |dir: &str| format!("tls-creds-x509,id=c,dir={dir},endpoint=client");
    let io = |creds: &str, image: &str| {
        let commands = [
            "-c",
            "write -P 5 0 3M",
            "-c",
            "read -P 5 0 3M",
            "-c",
            "flush",
        ];
        let mut args = vec!["--object", creds, "--image-opts"];
        args.extend(commands);
        args.push(image);
        try_client("qemu-io", &args)
    };
    let (code, said, error) = io(&creds(path), &image);
    assert_eq!(code, Some(0), "{said}{error}");
    assert_eq!(served.disk()[..3 << 20], vec![5; 3 << 20]);
    let stranger = strangers.path().to_str().unwrap();
    assert_ne!(io(&creds(stranger), &image).0, Some(0), "another CA");
    let (code, _, error) = try_client("nbdinfo", &[&served.uri("e")]);
    assert_ne!(code, Some(0), "in the clear: {error}");
    let (code, _, error) = try_client("qemu-img", &["info", "-f", "raw", &served.uri("e")]);
    assert_ne!(code, Some(0));
    assert!(error.contains("TLS"), "{error}");
    client("nbdinfo", &["--size", &uri(path)]);
    served.stop();
}

#[test]
fn without_verify_peer_a_client_needs_no_certificate() {
    let certs = tempfile::tempdir().unwrap();
    certificates(certs.path());
    let public = tempfile::tempdir().unwrap();
    fs::copy(
        certs.path().join("ca-cert.pem"),
        public.path().join("ca-cert.pem"),
    )
    .unwrap();
    let path = certs.path().to_str().unwrap();
    for (verify, expected) in [("off", true), ("on", false)] {
        let served = Served::start(&format!(
            "--object tls-creds-x509,id=t,dir={path},endpoint=server,verify-peer={verify} \
             --nbd-server addr.type=unix,addr.path=DIR/s,tls-creds=t --export nbd,id=e,node-name=n,name=e"
        ));
        let uri = format!(
            "nbds+unix://localhost/e?socket={}&tls-certificates={}",
            served.shown("s"),
            public.path().to_str().unwrap()
        );
        let (code, _, error) = try_client("nbdinfo", &["--size", &uri]);
        assert_eq!(code == Some(0), expected, "verify-peer={verify}: {error}");
        served.stop();
    }
}
