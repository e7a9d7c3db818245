//! NBD servers to be a client of: QEMU's, nbdkit's, and a node's options for them.

use blockgraph::driver::file::{Flushes, OpenMode};
use blockgraph::driver::nbd::client::{Family, Inet, KeepAlive, Lookup, NbdOptions, Server, Tls};
use blockgraph::graph::Body;
use blockgraph::graph::open::{DriverSpec, NodeSpec};
use blockgraph::tls::{Endpoint, SanityCheck, TlsCreds, TlsOptions, VerifyPeer};
use blockgraph::{Driver, NodeId};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A program starts within this, however busy the machine.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A server that is killed when it goes.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Ends it without a word to its clients but the kernel's.
    pub fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("reaped");
    }
}

/// Starts a server and waits until somebody answers at `server`.
pub fn start(server: &Server, program: &str, args: &[&str]) -> Running {
    if let Server::Unix(path) = server {
        let _ = std::fs::remove_file(path);
    }
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut running = Running(command.spawn().expect(program));
    let deadline = Instant::now() + READY_LIMIT;
    while !answers(server) {
        if let Some(status) = running.0.try_wait().expect("a child") {
            panic!("{program} {args:?} ended: {status}");
        }
        assert!(Instant::now() < deadline, "{program} does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    running
}

fn answers(server: &Server) -> bool {
    match server {
        Server::Unix(path) => UnixStream::connect(path).is_ok(),
        Server::Inet(inet) => greets(inet),
        Server::Connected(_) | Server::Passed(_) => true,
    }
}

/// A connection alone says little: one from a port to the very same port connects to itself.
fn greets(inet: &Inet) -> bool {
    let Ok(mut stream) = TcpStream::connect((inet.host.as_str(), port(inet))) else {
        return false;
    };
    stream.set_read_timeout(Some(READY_LIMIT)).expect("a limit");
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).is_ok() && &magic == b"NBDMAGIC"
}

fn port(inet: &Inet) -> u16 {
    inet.port.parse().expect("a number")
}

/// Is nbdkit on this machine?
pub fn has_nbdkit() -> bool {
    let found = Command::new("nbdkit").arg("--version").output().is_ok();
    if !found {
        println!("skipped: nbdkit is not installed");
    }
    found
}

pub fn unix(dir: &Path) -> Server {
    Server::Unix(dir.join("nbd.sock"))
}

/// A port of this machine that nobody else uses just now.
pub fn tcp() -> Server {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    Server::Inet(Inet {
        host: "127.0.0.1".to_owned(),
        port: address.port().to_string(),
        lookup: Lookup::Names,
        family: Family::Any,
        keep_alive: KeepAlive::On,
    })
}

/// qemu-nbd for a raw image, at `server`, as export "disk", for any number of clients.
pub fn qemu_nbd(server: &Server, image: &Path, format: &str, more: &[&str]) -> Running {
    let path: PathBuf;
    let mut args = vec!["-t", "-e", "0", "-x", "disk", "-f", format];
    args.extend(["--discard=unmap", "--cache=writeback"]);
    match server {
        Server::Unix(socket) => {
            path = socket.clone();
            args.extend(["-k", path.to_str().expect("UTF-8")]);
        }
        Server::Inet(inet) => args.extend(["-b", &inet.host, "-p", &inet.port]),
        Server::Connected(_) | Server::Passed(_) => panic!("nobody can listen there"),
    }
    args.extend(more);
    args.push(image.to_str().expect("UTF-8"));
    start(server, "qemu-nbd", &args)
}

/// What to ask `server` for: export "disk", without TLS, without patience.
pub fn options(server: &Server) -> NbdOptions {
    NbdOptions {
        server: server.clone(),
        export: "disk".to_owned(),
        tls: Tls::Off,
        context: None,
        reconnect_delay: Duration::ZERO,
        open_timeout: Duration::ZERO,
        mode: OpenMode::ReadWrite,
        flushes: Flushes::Sync,
    }
}

pub fn node(options: NbdOptions) -> NodeSpec {
    NodeSpec {
        name: None,
        common: super::common(),
        driver: DriverSpec::Nbd(Box::new(options)),
    }
}

/// The driver of a node.
pub fn driver(bench: &super::Bench, node: NodeId) -> Arc<dyn Driver> {
    match bench
        .current
        .get()
        .node(node)
        .map(|node| node.body().clone())
    {
        Some(Body::Driver(driver)) => driver,
        _ => panic!("a driver"),
    }
}

/// A client's end of TLS by the files of `dir`, to a server of that name.
pub fn tls(dir: &Path, hostname: Option<&str>) -> Tls {
    let creds = TlsCreds::load(&TlsOptions {
        dir: dir.to_owned(),
        endpoint: Endpoint::Client,
        verify_peer: VerifyPeer::Yes,
        sanity_check: SanityCheck::Yes,
    });
    let creds = creds.expect("credentials");
    Tls::With(creds.client_config(hostname).expect("a client's"))
}
