//! Two servers with the same disk, ours and qemu-storage-daemon, and what each answers to a script.

use super::script;
use blockgraph::driver::nbd::wire::{
    Chunk, ChunkHead, ChunkKind, Form, GREETING_BYTES, OPTION_REPLY_HEAD_BYTES, OptionKind,
    OptionReplyHead, OptionReplyKind, RequestHead, SIMPLE_REPLY_BYTES, SIMPLE_REPLY_MAGIC,
    SimpleReply,
};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the request of a script, and the flush that follows it.
pub(crate) const COOKIE: u64 = 7;
pub(crate) const LAST: u64 = 9;
/// Size of the disk.
pub(crate) const SIZE: u64 = 1 << 20;
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, killed when dropped.
pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

/// Where connections live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// Wherever the program puts them.
    Any,
    /// On an iothread, all of them on the same.
    Iothread,
}

impl Server {
    /// `program` with a disk that has data from 64 KiB to 128 KiB: writable as `e`, read-only as `ro`.
    pub(crate) fn start(program: &str, more: &[&str]) -> Server {
        Server::start_at(Home::Any, program, more)
    }

    /// The same, with connections that live there.
    pub(crate) fn start_at(home: Home, program: &str, more: &[&str]) -> Server {
        let iothread = match home {
            Home::Any => "",
            Home::Iothread => ",iothread=io",
        };
        let dir = tempfile::tempdir().expect("a directory");
        let disk = File::create(dir.path().join("disk")).expect("a disk");
        disk.set_len(SIZE).expect("a disk");
        disk.write_all_at(&[0x5a; 65536], 65536).expect("a disk");
        let path = dir.path().to_str().expect("UTF-8");
        let line = format!(
            "--object iothread,id=io \
             --blockdev file,node-name=f,filename={path}/disk,discard=unmap \
             --blockdev raw,node-name=n,file=f,discard=unmap \
             --nbd-server addr.type=unix,addr.path={path}/socket{} \
             --export nbd,id=e,node-name=n,name=e,description=text,writable=on,allocation-depth=on{iothread} \
             --export nbd,id=ro,node-name=n,name=ro{iothread} \
             --blockdev file,node-name=d,filename={path}/disk,cache.direct=on,read-only=on \
             --export nbd,id=d,node-name=d,name=direct{iothread}",
            more.concat()
        );
        let child = Command::new(program)
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .stderr(File::create(dir.path().join("stderr")).expect("a log"))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        let server = Server { child, dir };
        let until = Instant::now() + PATIENCE;
        while server.try_connect("ro").is_err() {
            assert!(Instant::now() < until, "{program} does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir().join("stderr")).unwrap_or_default()
    }

    /// Waits until it has said so on stderr.
    pub(crate) fn wait_for(&self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "{text}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// A connection that was greeted.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.dir().join("socket"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut [0; GREETING_BYTES])?;
        Ok(stream)
    }

    fn try_connect(&self, export: &str) -> io::Result<()> {
        let mut stream = self.connect()?;
        stream.write_all(&script::FLAGS.to_be_bytes())?;
        stream.write_all(&script::go(export))?;
        match agree(&mut stream)? {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A client that does everything right is served.
    pub(crate) fn serves(&self) -> bool {
        let mut stream = match self.connect() {
            Ok(stream) => stream,
            Err(_) => return false,
        };
        let read = script::head(0, 0, 65536, 512);
        let sent = stream
            .write_all(&script::FLAGS.to_be_bytes())
            .and_then(|()| stream.write_all(&script::go("ro")));
        if sent.is_err() || !agree(&mut stream).unwrap_or(false) {
            return false;
        }
        let mut reply = [0; SIMPLE_REPLY_BYTES + 512];
        stream
            .write_all(&read.encode_compact().expect("short"))
            .is_ok()
            && stream.read_exact(&mut reply).is_ok()
            && reply[SIMPLE_REPLY_BYTES..] == [0x5a; 512]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads replies to options until the one to GO; true if it was agreed.
fn agree(stream: &mut UnixStream) -> io::Result<bool> {
    loop {
        let (head, _) = read_option_reply(stream)?;
        if head.option == OptionKind::Go && head.kind != OptionReplyKind::Info {
            return Ok(head.kind == OptionReplyKind::Ack);
        }
    }
}

fn read_option_reply(stream: &mut UnixStream) -> io::Result<(OptionReplyHead, Vec<u8>)> {
    let mut bytes = [0; OPTION_REPLY_HEAD_BYTES];
    stream.read_exact(&mut bytes)?;
    let head = OptionReplyHead::decode(&bytes).map_err(io::Error::other)?;
    let mut payload = vec![0; head.len_bytes as usize];
    stream.read_exact(&mut payload)?;
    Ok((head, payload))
}

/// Whatever came until the server closed.
fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut block = [0; 4096];
    loop {
        match stream.read(&mut block) {
            Ok(0) => return bytes,
            Ok(len) => bytes.extend(&block[..len]),
            // Closed with something of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("the server neither answers nor closes: {error}"),
        }
    }
}

/// What a server answers to options, up to its closing; the script has to end so that it closes.
pub(crate) fn haggle(server: &Server, flags: u32, options: &[u8]) -> Vec<u8> {
    let mut stream = server.connect().expect("a connection");
    let mut sent = flags.to_be_bytes().to_vec();
    sent.extend(options);
    // It may close before it has read everything.
    let _ = stream.write_all(&sent);
    read_all(&mut stream)
}

/// A reply, or a part of one: which request, and its bytes.
pub(crate) type Part = (u64, Vec<u8>);

/// What a server answers to a request and the flush after it, in the order of the requests; and whether it closed before
/// all was answered.
pub(crate) fn ask(
    server: &Server,
    export: &str,
    options: &[u8],
    form: Form,
    request: &[u8],
) -> (Vec<Part>, bool) {
    let mut stream = server.connect().expect("a connection");
    let go = script::go(export);
    let sent = [&script::FLAGS.to_be_bytes(), options, &go[..]].concat();
    stream.write_all(&sent).expect("sent");
    assert!(agree(&mut stream).expect("an agreement"));
    let last = RequestHead {
        cookie: LAST,
        ..script::head(3, 0, 0, 0)
    };
    let last = match form {
        Form::Extended => last.encode_extended().to_vec(),
        _ => last.encode_compact().expect("short").to_vec(),
    };
    let _ = stream.write_all(&[request, &last].concat());
    let read = script::read_len(request, form);
    let mut parts = Vec::new();
    let mut open = vec![COOKIE, LAST];
    while !open.is_empty() {
        match read_part(&mut stream, form, read) {
            Ok((cookie, bytes, done)) => {
                parts.push((cookie, bytes));
                if done {
                    open.retain(|o| *o != cookie);
                }
            }
            Err(error) => {
                let slow = io::ErrorKind::WouldBlock;
                assert_ne!(error.kind(), slow, "neither an answer nor the end");
                parts.sort_by_key(|(cookie, _)| *cookie);
                return (parts, true);
            }
        }
    }
    parts.sort_by_key(|(cookie, _)| *cookie);
    (parts, false)
}

fn read_part(stream: &mut UnixStream, form: Form, read: usize) -> io::Result<(u64, Vec<u8>, bool)> {
    let mut bytes = vec![0; SIMPLE_REPLY_BYTES];
    stream.read_exact(&mut bytes)?;
    if bytes[..4] == SIMPLE_REPLY_MAGIC.to_be_bytes() {
        let head = bytes.first_chunk().expect("a head");
        let reply = SimpleReply::decode(head).map_err(io::Error::other)?;
        if reply.error.is_none() && reply.cookie == COOKIE && form == Form::Simple {
            bytes.resize(SIMPLE_REPLY_BYTES + read, 0);
            stream.read_exact(&mut bytes[SIMPLE_REPLY_BYTES..])?;
        }
        return Ok((reply.cookie, bytes, true));
    }
    bytes.resize(ChunkHead::bytes(form), 0);
    stream.read_exact(&mut bytes[SIMPLE_REPLY_BYTES..])?;
    let head = ChunkHead::decode(form, &bytes).map_err(io::Error::other)?;
    let from = bytes.len();
    bytes.resize(from + head.len as usize, 0);
    stream.read_exact(&mut bytes[from..])?;
    Ok((head.cookie, bytes, head.chunk == Chunk::Last))
}

/// The error of a reply, if it is one.
pub(crate) fn error_of(form: Form, bytes: &[u8]) -> Option<u32> {
    if bytes.get(..4) == Some(&SIMPLE_REPLY_MAGIC.to_be_bytes()) {
        let number = u32::from_be_bytes(*bytes.get(4..8)?.first_chunk()?);
        return (number != 0).then_some(number);
    }
    let head = ChunkHead::decode(form, bytes).expect("a chunk");
    let payload = &bytes[ChunkHead::bytes(form)..];
    matches!(head.kind, ChunkKind::Error | ChunkKind::ErrorOffset)
        .then(|| u32::from_be_bytes(*payload.first_chunk().expect("a number")))
}
