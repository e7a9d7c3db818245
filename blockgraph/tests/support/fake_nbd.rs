//! An NBD server by script, which can say whatever a server may not.

use blockgraph::driver::nbd::client::Server;
use blockgraph::driver::nbd::wire::{
    BlockSizes, CONTEXT_ALLOCATION, Chunk, ChunkHead, ChunkKind, Command, EXTENDED_REQUEST_BYTES,
    ExportHead, Form, Greeting, HandshakeFlags, Info, MetaReply, NbdError, OLDSTYLE_MAGIC,
    OPTION_HEAD_BYTES, OptionHead, OptionKind, OptionReplyHead, OptionReplyKind, REQUEST_BYTES,
    RequestHead, SimpleReply,
};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The size of every disk here.
pub const SIZE: u64 = 1 << 20;
/// The id of base:allocation here.
pub const CONTEXT: u32 = 7;

/// Listens, and does `act` with the first client on a thread of its own; then hangs up.
pub fn serve(dir: &Path, act: impl FnOnce(&mut Peer) + Send + 'static) -> Server {
    let path = dir.join("fake.sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("bound");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        act(&mut Peer { stream });
    });
    Server::Unix(path)
}

/// One client, as a server sees it. A client that has hung up is none of the script's business.
pub struct Peer {
    stream: UnixStream,
}

impl Peer {
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Reads on until the client hangs up.
    pub fn listen(&mut self) {
        let _ = std::io::copy(&mut self.stream, &mut std::io::sink());
    }

    /// False once the client is gone.
    pub fn read(&mut self, bytes: &mut [u8]) -> bool {
        self.stream.read_exact(bytes).is_ok()
    }

    pub fn greet(&mut self, flags: u16) {
        let flags = HandshakeFlags(flags);
        self.send(&Greeting { flags }.encode());
        self.read(&mut [0; 4]);
    }

    pub fn option(&mut self) -> OptionKind {
        let mut head = [0; OPTION_HEAD_BYTES];
        if !self.read(&mut head) {
            return OptionKind::Abort;
        }
        let head = OptionHead::decode(&head).expect("our own client's");
        self.read(&mut vec![0; head.len_bytes as usize]);
        head.kind
    }

    pub fn reply(&mut self, option: OptionKind, kind: OptionReplyKind, payload: &[u8]) {
        self.reply_with(option, kind, payload.len() as u32, payload);
    }

    /// With a length that need not be the payload's.
    pub fn reply_with(
        &mut self,
        option: OptionKind,
        kind: OptionReplyKind,
        len_bytes: u32,
        payload: &[u8],
    ) {
        let head = OptionReplyHead {
            option,
            kind,
            len_bytes,
        };
        let mut bytes = head.encode().to_vec();
        bytes.extend(payload);
        self.send(&bytes);
    }

    /// Greets and answers options up to `stop`, which is left to the script, or to the end of the handshake.
    pub fn shake_until(&mut self, form: Form, stop: Option<OptionKind>) {
        self.greet(3);
        loop {
            let option = self.option();
            if Some(option) == stop || option == OptionKind::Abort {
                return;
            }
            match option {
                OptionKind::ExtendedHeaders if form < Form::Extended => {
                    self.reply(option, OptionReplyKind::Unsupported, &[]);
                }
                OptionKind::StructuredReply if form < Form::Structured => {
                    self.reply(option, OptionReplyKind::Unsupported, &[]);
                }
                OptionKind::SetMetaContext => {
                    self.reply(option, OptionReplyKind::MetaContext, &context(CONTEXT));
                    self.reply(option, OptionReplyKind::Ack, &[]);
                }
                OptionKind::Go => {
                    self.go(head(SIZE), None);
                    return;
                }
                _ => self.reply(option, OptionReplyKind::Ack, &[]),
            }
        }
    }

    pub fn go(&mut self, head: ExportHead, sizes: Option<BlockSizes>) {
        self.info(Info::Export(head));
        if let Some(sizes) = sizes {
            self.info(Info::BlockSize(sizes));
        }
        self.reply(OptionKind::Go, OptionReplyKind::Ack, &[]);
    }

    pub fn info(&mut self, info: Info<'_>) {
        let mut payload = Vec::new();
        info.encode(&mut payload);
        self.reply(OptionKind::Go, OptionReplyKind::Info, &payload);
    }

    /// The next request, with a write's data; `None` once the client has taken its leave.
    pub fn request(&mut self, form: Form) -> Option<(RequestHead, Vec<u8>)> {
        let head = match form {
            Form::Extended => {
                let mut bytes = [0; EXTENDED_REQUEST_BYTES];
                if !self.read(&mut bytes) {
                    return None;
                }
                RequestHead::decode_extended(&bytes)
            }
            Form::Simple | Form::Structured => {
                let mut bytes = [0; REQUEST_BYTES];
                if !self.read(&mut bytes) {
                    return None;
                }
                RequestHead::decode_compact(&bytes)
            }
        };
        let head = head.expect("our own client's");
        let data = match head.command {
            Command::Write => head.len as usize,
            Command::Disconnect => return None,
            _ => 0,
        };
        let mut data = vec![0; data];
        self.read(&mut data).then_some((head, data))
    }

    pub fn chunk(&mut self, form: Form, head: ChunkHead, payload: &[u8]) {
        let mut bytes = Vec::new();
        head.encode(form, &mut bytes);
        bytes.extend(payload);
        self.send(&bytes);
    }

    pub fn simple(&mut self, cookie: u64, error: Option<NbdError>) {
        self.send(&SimpleReply { error, cookie }.encode());
    }
}

/// A writable disk that can do everything.
pub fn head(size_bytes: u64) -> ExportHead {
    let flags = ExportHead::HAS_FLAGS
        | ExportHead::SEND_FLUSH
        | ExportHead::SEND_FUA
        | ExportHead::SEND_TRIM
        | ExportHead::SEND_WRITE_ZEROES;
    ExportHead { size_bytes, flags }
}

pub fn context(id: u32) -> Vec<u8> {
    let mut payload = Vec::new();
    let name = CONTEXT_ALLOCATION;
    MetaReply { id, name }.encode(&mut payload);
    payload
}

/// A chunk's head that is right but for what the script changes.
pub fn chunk(request: &RequestHead, kind: ChunkKind, len: usize) -> ChunkHead {
    ChunkHead {
        chunk: Chunk::Last,
        kind,
        cookie: request.cookie,
        at: request.at,
        len: len as u64,
    }
}

/// The payload of a data chunk.
pub fn data(at: u64, len: usize) -> Vec<u8> {
    let mut payload = at.to_be_bytes().to_vec();
    payload.extend(vec![0x5a; len]);
    payload
}

/// The greeting of before 2011.
pub fn oldstyle(peer: &mut Peer, size: u64, flags: u32) {
    let mut bytes = b"NBDMAGIC".to_vec();
    bytes.extend(OLDSTYLE_MAGIC.to_be_bytes());
    bytes.extend(size.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.extend([0; 124]);
    peer.send(&bytes);
}
