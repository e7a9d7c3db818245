//! A simulated disk behind the same interface as the kernel's ring, for tests.
//!
//! The rule: everything that happens follows from the seed and from what the disk is asked, in that order. (Rings on
//! several threads ask in an order of their own; several rings on one thread do not.) Memory of an operation is touched
//! when the disk carries it out, at some moment between its submission and its end. Time is virtual: it passes when
//! nothing else can happen. Only eventfds are real, so that bells work between threads.

mod flight;
mod queue;
mod rng;
mod rules;
mod store;

pub(crate) use queue::Queue;
pub use rng::Rng;
pub use rules::{Act, Cancels, Kind, Order, Rule, Seen, Times, Weather};
pub use store::SECTOR_BYTES;

use crate::file::{Align, File, FileId};
use crate::wait::Bell;
use flight::Flight;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Store;

/// The images of a disk's files.
pub type Images = BTreeMap<FileId, Vec<u8>>;

/// What a disk begins as.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where all chance comes from.
    pub seed: u64,
    /// Its files.
    pub files: Vec<FileConfig>,
    /// What holds for every operation.
    pub weather: Weather,
    /// Operations a ring takes before it must be entered.
    pub entries: u32,
}

/// A file of a simulated disk.
#[derive(Clone, Debug)]
pub struct FileConfig {
    /// Its name.
    pub id: FileId,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// What transfers must be multiples of; others end with EINVAL.
    pub align: Align,
    /// It cannot grow beyond this many bytes: ENOSPC, after what still fits.
    pub size_bytes_max: u64,
}

impl Config {
    /// A disk without files, in calm weather.
    pub fn new(seed: u64) -> Config {
        Config {
            seed,
            files: Vec::new(),
            weather: Weather::CALM,
            entries: 256,
        }
    }

    /// With a file of zeroes that takes anything and does not grow.
    pub fn file(self, id: FileId, size_bytes: usize) -> Config {
        self.image(id, vec![0; size_bytes])
    }

    /// With a file of these bytes that takes anything and does not grow.
    pub fn image(self, id: FileId, bytes: Vec<u8>) -> Config {
        let size_bytes_max = bytes.len() as u64;
        self.file_with(FileConfig {
            id,
            bytes,
            align: Align::NONE,
            size_bytes_max,
        })
    }

    /// With that file.
    pub fn file_with(mut self, file: FileConfig) -> Config {
        self.files.push(file);
        self
    }

    /// In that weather.
    pub fn weather(self, weather: Weather) -> Config {
        Config { weather, ..self }
    }

    /// The disk.
    pub fn disk(self) -> Disk {
        Disk::new(self)
    }
}

/// What happened, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A ring was given an operation.
    Submitted(Seen),
    /// It was carried out: its memory and the file changed.
    CarriedOut(Seen),
    /// The ring was told; bytes, or a negative errno.
    Ended(Seen, i32),
}

/// A file and its limits.
#[derive(Debug)]
pub(crate) struct SimFile {
    store: Store,
    align: Align,
    size_bytes_max: u64,
}

#[derive(Debug)]
pub(crate) struct State {
    seed: u64,
    rng: Rng,
    files: BTreeMap<FileId, SimFile>,
    weather: Weather,
    entries: u32,
    rules: Vec<Rule>,
    flights: Vec<Flight>,
    log: Vec<Event>,
    submitted: u64,
    /// Rises with every event; also names changes to the files.
    now: u64,
    bells: Vec<Bell>,
}

/// A disk in memory, shared by the rings that use it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// The disk `config` says.
    pub fn new(config: Config) -> Disk {
        let files = config.files.into_iter().map(|file| {
            let sim = SimFile {
                store: Store::new(file.bytes),
                align: file.align,
                size_bytes_max: file.size_bytes_max,
            };
            (file.id, sim)
        });
        Disk(Arc::new(Mutex::new(State {
            seed: config.seed,
            rng: Rng::new(config.seed),
            files: files.collect(),
            weather: config.weather,
            entries: config.entries,
            rules: Vec::new(),
            flights: Vec::new(),
            log: Vec::new(),
            submitted: 0,
            now: 0,
            bells: Vec::new(),
        })))
    }

    /// A file of the disk, to be adopted by rings. Errors: no such file, out of descriptors.
    pub fn open(&self, id: FileId) -> std::io::Result<Arc<File>> {
        let align = self.state().files.get(&id).map(|file| file.align);
        let align = align.ok_or(std::io::ErrorKind::NotFound)?;
        // The ring wants a descriptor; this one is never used.
        let fd = OwnedFd::from(std::fs::File::open("/dev/null")?);
        Ok(Arc::new(File::new(id, fd, align)))
    }

    /// Adds a rule; earlier ones go first.
    pub fn rule(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Forgets all rules. What they decided stays decided.
    pub fn clear_rules(&self) {
        self.state().rules.clear();
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Lets operations that are held go on: those `choose` says; returns how many.
    pub fn release(&self, choose: impl Fn(&Seen) -> bool) -> usize {
        let mut state = self.state();
        let mut count = 0;
        for flight in &mut state.flights {
            if flight.is_held() && choose(&flight.seen) {
                flight.release();
                count += 1;
            }
        }
        state.bells.iter().for_each(Bell::ring);
        count
    }

    /// Lets all operations that are held go on; returns how many.
    pub fn release_all(&self) -> usize {
        self.release(|_| true)
    }

    /// The operations that are held.
    pub fn held(&self) -> Vec<Seen> {
        let state = self.state();
        let held = state.flights.iter().filter(|flight| flight.is_held());
        held.map(|flight| flight.seen).collect()
    }

    /// Operations submitted so far.
    pub fn count(&self) -> u64 {
        self.state().submitted
    }

    /// What happened so far, in order.
    pub fn log(&self) -> Vec<Event> {
        self.state().log.clone()
    }

    /// What happened since the first `skip` events, in order.
    pub fn log_from(&self, skip: usize) -> Vec<Event> {
        let state = self.state();
        state.log[skip.min(state.log.len())..].to_vec()
    }

    /// The files as reads see them.
    pub fn images(&self) -> Images {
        let state = self.state();
        let files = state.files.iter();
        files
            .map(|(&id, file)| (id, file.store.live().to_vec()))
            .collect()
    }

    /// The files as a crash at this moment may leave them; each seed gives one way. The disk itself goes on.
    pub fn crash(&self, seed: u64) -> Images {
        let state = self.state();
        let mut rng = Rng::new(seed ^ state.seed);
        let mut files = BTreeMap::new();
        for (&id, file) in &state.files {
            let mut store = file.store.clone();
            state.carry_out_some(id, &mut store, &mut rng);
            files.insert(id, store.crash(&mut rng));
        }
        files
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test thread that panicked says so itself; the others may still look.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
