//! What every test of the ring needs: the same ring on each engine, with a file to work on.

#![allow(dead_code, unreachable_pub, missing_docs)]

use ring::sim::{Config, Disk, FileConfig, Weather};
use ring::{Align, Choice, Done, Errno, File, FileId, Flavour, Mem, Op, OpId, Ring, Seg, Wait};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

/// The file of every rig.
pub const FILE: FileId = FileId(3);

/// How a rig's file is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    Page,
    /// O_DIRECT.
    None,
}

pub const DIRECT: Align = Align {
    memory_bytes: 512,
    offset_bytes: 512,
};

/// A ring and a file.
pub struct Rig {
    pub name: String,
    pub ring: Ring,
    pub file: Arc<File>,
    pub disk: Option<Disk>,
    host: Option<(tempfile::TempDir, std::fs::File)>,
}

const CHOICES: [Choice; 4] = [
    Choice::Uring(Some(Flavour::DeferTaskrun)),
    Choice::Uring(Some(Flavour::CoopTaskrun)),
    Choice::Uring(Some(Flavour::Plain)),
    Choice::Threads,
];

/// Runs `test` on every engine with a file of `bytes`.
pub fn on_each(bytes: &[u8], cache: Cache, test: impl Fn(Rig)) {
    for choice in CHOICES {
        match Ring::new(choice.clone()) {
            Ok(ring) => test(real(ring, bytes, cache)),
            Err(error) => println!("skipped {choice:?}: {error}"),
        }
    }
    for seed in 0..20 {
        test(simulated(seed, bytes, cache, Weather::ROUGH));
    }
    test(simulated(0, bytes, cache, Weather::CALM));
}

/// A rig on a file of its own.
pub fn real(mut ring: Ring, bytes: &[u8], cache: Cache) -> Rig {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    std::fs::write(&path, bytes).expect("written");
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true);
    let align = match cache {
        Cache::Page => Align::NONE,
        Cache::None => {
            options.custom_flags(libc::O_DIRECT);
            DIRECT
        }
    };
    let fd = OwnedFd::from(options.open(&path).expect("opened"));
    let file = Arc::new(File::new(FILE, fd, align));
    ring.adopt(&file);
    let plain = std::fs::File::open(&path).expect("opened");
    Rig {
        name: ring.engine_name().to_owned(),
        ring,
        file,
        disk: None,
        host: Some((dir, plain)),
    }
}

/// A rig on a simulated disk.
pub fn simulated(seed: u64, bytes: &[u8], cache: Cache, weather: Weather) -> Rig {
    let align = match cache {
        Cache::Page => Align::NONE,
        Cache::None => DIRECT,
    };
    let config = Config::new(seed).weather(weather).file_with(FileConfig {
        id: FILE,
        bytes: bytes.to_vec(),
        align,
        size_bytes_max: 1 << 30,
    });
    on_disk(config.disk(), format!("simulated disk, seed {seed}"))
}

/// A rig on that disk.
pub fn on_disk(disk: Disk, name: String) -> Rig {
    let mut ring = Ring::new(Choice::Sim(disk.clone())).expect("a ring");
    let file = disk.open(FILE).expect("the file");
    ring.adopt(&file);
    Rig {
        name,
        ring,
        file,
        disk: Some(disk),
        host: None,
    }
}

impl Rig {
    /// The file's bytes as another reader sees them.
    pub fn host_bytes(&self) -> Vec<u8> {
        if let Some(disk) = &self.disk {
            return disk.images()[&FILE].clone();
        }
        let (_, file) = self.host.as_ref().expect("a host file");
        let len = file.metadata().expect("metadata").len() as usize;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// 512-byte blocks the host file takes; None on a simulated disk.
    pub fn host_blocks(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let (_, file) = self.host.as_ref()?;
        Some(file.metadata().expect("metadata").blocks())
    }

    pub fn start(&mut self, op: Op, mem: &Mem, token: u64) -> Option<OpId> {
        let segs: Vec<Seg> = mem.segs().collect();
        self.ring.start(op, &segs, 0, mem.len(), token)
    }

    /// Runs one operation to its end.
    pub fn run(&mut self, op: Op, mem: &Mem) -> Result<(), Errno> {
        self.start(op, mem, 77).expect("room");
        let done = self.ends(1);
        assert_eq!(done[0].token, 77, "{}", self.name);
        done[0].result
    }

    /// Turns until `count` ends have come out, and no more than that.
    pub fn ends(&mut self, count: usize) -> Vec<Done> {
        let mut done = Vec::new();
        while done.len() < count {
            self.ring.turn(Wait::One, &mut done).expect("turned");
        }
        assert_eq!(done.len(), count, "{}: more ends than expected", self.name);
        done
    }

    pub fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mem = Mem::zeroed(len).expect("memory");
        mem.store(0, &vec![0xaa; len]);
        self.run(read(at), &mem)?;
        Ok(bytes_of(&mem))
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.run(write(at), &mem_of(bytes))
    }
}

pub fn read(at: u64) -> Op {
    Op::Read { file: FILE, at }
}

pub fn write(at: u64) -> Op {
    Op::Write {
        file: FILE,
        at,
        durability: ring::Durability::Cached,
    }
}

pub fn sync() -> Op {
    Op::Sync {
        file: FILE,
        level: ring::SyncLevel::Data,
    }
}

pub fn mem_of(bytes: &[u8]) -> Mem {
    let mem = Mem::zeroed(bytes.len()).expect("memory");
    mem.store(0, bytes);
    mem
}

pub fn bytes_of(mem: &Mem) -> Vec<u8> {
    let mut bytes = vec![0; mem.len()];
    mem.load(0, &mut bytes);
    bytes
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = ring::sim::Rng::new(seed);
    (0..len.div_ceil(8))
        .flat_map(|_| rng.bits().to_le_bytes())
        .take(len)
        .collect()
}
