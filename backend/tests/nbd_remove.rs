//! An export that is taken away, and a server that stops, end their connections and no others, at once.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::export::nbd::{
    AllocationDepth, NbdExportOptions, NbdServer, NbdServerOptions, Runs, Writes,
};
use backend::queue::{Polling, Team, WorkerOptions};
use blockgraph::driver::nbd::wire::{Choose, OptionHead, OptionKind, RequestHead};
use blockgraph::driver::nbd::wire::{Command, CommandFlags};
use blockgraph::driver::null::Reads;
use blockgraph::graph::Control;
use blockgraph::graph::open::{DriverSpec, NodeSpec, NullKind, NullSpec, open};
use blockgraph::pin::Epochs;
use blockgraph::{Common, Current, Mode, NodeId};
use ring::{Choice, Durability};

const SIZE: u64 = 1 << 20;

struct Stage {
    server: NbdServer,
    socket: std::path::PathBuf,
    node: NodeId,
    runs: Runs,
    _dir: tempfile::TempDir,
    _team: Arc<Team>,
}

/// Where connections live.
#[derive(Clone, Copy, Debug)]
enum Home {
    Alone,
    Iothread,
}

const HOMES: [Home; 2] = [Home::Alone, Home::Iothread];

/// A server with a null disk whose requests take `latency_ns`.
fn stage(home: Home, latency_ns: u64) -> Stage {
    let (current, epochs) = (Arc::<Current>::default(), Arc::<Epochs>::default());
    let mut control =
        Control::new(current.clone(), epochs.clone(), Choice::Threads).expect("a control lane");
    let spec = NodeSpec {
        name: Some("n".to_owned()),
        common: Common::default(),
        driver: DriverSpec::Null(NullSpec {
            kind: NullKind::Co,
            size_bytes: SIZE,
            reads: Reads::Zeroes,
            latency_ns,
        }),
    };
    let (node, _) = open(&current, spec, &mut control).expect("a node");
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let worker = WorkerOptions {
        current: current.clone(),
        epochs: epochs.clone(),
        engine: Choice::Best,
        polling: Arc::new(Polling::up_to(0)),
        mode: Mode::Fast,
    };
    let team = Arc::new(Team::new("io", 1, worker));
    let server = NbdServer::start(NbdServerOptions {
        listeners: vec![listener.into()],
        tls: None,
        connections_max: None,
        handshake_max: None,
        send_timeout: Duration::from_secs(30),
        current,
        epochs,
    });
    Stage {
        server: server.expect("a server"),
        socket,
        node,
        runs: match home {
            Home::Alone => Runs::Alone(Choice::Threads),
            Home::Iothread => Runs::On(Arc::downgrade(&team)),
        },
        _dir: dir,
        _team: team,
    }
}

impl Stage {
    fn offer(&self, name: &str) -> bool {
        self.server.add(NbdExportOptions {
            name: name.to_owned(),
            description: None,
            node: self.node,
            size_bytes: SIZE,
            block_bytes: 1,
            writes: Writes::Allowed,
            durability: Durability::Cached,
            allocation_depth: AllocationDepth::Hidden,
            bitmaps: Vec::new(),
            runs: self.runs.clone(),
            stats: Arc::default(),
        })
    }

    /// A client of `export`.
    fn client(&self, export: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).expect("a connection");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("a socket");
        stream.read_exact(&mut [0; 18]).expect("a greeting");
        let mut payload = Vec::new();
        Choose {
            name: export,
            wanted: Vec::new(),
        }
        .encode(&mut payload);
        let head = OptionHead {
            kind: OptionKind::Go,
            len_bytes: payload.len() as u32,
        };
        stream.write_all(&[0, 0, 0, 3]).expect("sent");
        stream.write_all(&head.encode()).expect("sent");
        stream.write_all(&payload).expect("sent");
        // Block sizes, the export and the acknowledgement.
        let mut replies = [0; (20 + 14) + (20 + 12) + 20];
        stream.read_exact(&mut replies).expect("an agreement");
        stream
    }
}

fn ask(stream: &mut UnixStream, command: Command, len: u64) {
    let head = RequestHead {
        flags: CommandFlags(0),
        command,
        cookie: 1,
        at: 0,
        len,
    };
    let bytes = head.encode_compact().expect("short");
    stream.write_all(&bytes).expect("sent");
}

fn is_served(stream: &mut UnixStream) -> bool {
    ask(stream, Command::Flush, 0);
    stream.read_exact(&mut [0; 16]).is_ok()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_removed_export_ends_its_own_connections_and_its_name_is_free() {
    HOMES.into_iter().for_each(removes);
}

fn removes(home: Home) {
    let stage = stage(home, 0);
    assert!(stage.offer("a") && stage.offer("b") && !stage.offer("a"));
    let (mut gone, mut stays) = (stage.client("a"), stage.client("b"));
    assert!(is_served(&mut gone) && is_served(&mut stays));
    stage.server.remove("a", soon()).expect("no stuck disk");
    assert_eq!(gone.read(&mut [0]).expect("the end"), 0);
    assert!(is_served(&mut stays));
    assert!(!stage.server.has("a") && stage.server.has("b"));
    assert!(stage.offer("a"));
    assert!(is_served(&mut stage.client("a")));
}

#[test]
fn what_is_in_flight_ends_before_the_export_is_gone() {
    HOMES.into_iter().for_each(drains);
}

fn drains(home: Home) {
    let stage = stage(home, 300_000_000);
    assert!(stage.offer("slow"));
    let mut client = stage.client("slow");
    ask(&mut client, Command::Read, 512);
    ask(&mut client, Command::Read, 512);
    // Until the requests are taken nothing is in flight: the reply to a third that is refused at once says they are.
    ask(&mut client, Command::Other(99), 0);
    client.read_exact(&mut [0; 16]).expect("a refusal");
    let early = stage.server.remove("slow", Instant::now());
    assert_eq!(early.expect_err("two requests are in flight").0, 1);
    let until = soon();
    while stage.server.connections() > 0 {
        assert!(Instant::now() < until, "the connection stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stopped_server_waits_for_no_client() {
    HOMES.into_iter().for_each(stops);
}

fn stops(home: Home) {
    let mut stage = stage(home, 0);
    assert!(stage.offer("a"));
    let mut deaf = stage.client("a");
    deaf.set_nonblocking(true).expect("a socket");
    let read = |stream: &mut UnixStream| {
        let head = RequestHead {
            flags: CommandFlags(0),
            command: Command::Read,
            cookie: 1,
            at: 0,
            len: SIZE,
        };
        stream.write_all(&head.encode_compact().expect("short"))
    };
    while read(&mut deaf).is_ok() {}
    let half = UnixStream::connect(&stage.socket).expect("a connection");
    stage.server.stop(soon()).expect("no stuck disk");
    assert_eq!(stage.server.connections(), 0);
    assert!(
        UnixStream::connect(&stage.socket).is_err(),
        "nobody listens"
    );
    drop(half);
}
