//! What a run begins with: the files of a stack, and what each of its sectors reads as. Made by qemu-img and qemu-io, or by
//! our own engine on a calm disk.

use super::crash;
use super::stack::{Compression, Filter, Format, Layer, Layout, Stack, Version};
use super::world::{Nature, World};
use blockgraph::driver::file::Cache;
use blockgraph::{Kind, Mode, Span, Unmap};
use ring::sim::{Images, Rng, Weather};
use ring::{Durability, FileId, Mem};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tests::cells::{SECTOR, Stamp, bytes_of, stamp};
use tests::qemu_img::{qemu_img, qemu_io};

/// Sectors of the guest's disk, as a rule.
pub const SECTORS: u64 = 256;
/// The longest chain a run begins with.
pub const LAYERS_MAX: u64 = 4;
/// Files that a run has to spare, for layers that come later.
const SPARE_FILES: u32 = 4;
/// The files of a run: two for a layer, and some to spare.
pub const FILES: u32 = 2 * LAYERS_MAX as u32 + SPARE_FILES;

/// A stack's files and what they hold.
#[derive(Clone, Debug)]
pub struct Start {
    pub stack: Stack,
    pub images: Images,
    /// What the guest reads.
    pub content: Vec<Stamp>,
    /// What each layer below the top reads as, seen from the guest.
    pub below: Vec<Vec<Stamp>>,
}

/// How many of them QEMU makes.
pub const QEMU_STARTS: u64 = 16;

/// What is done to a layer before the run.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    Write,
    Compressed,
    Zeroes,
    Unmapped,
}

/// A deed and where.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub deed: Deed,
    pub at: u64,
    pub sectors: u64,
}

/// A layer and its history.
#[derive(Clone, Debug)]
pub struct Story {
    pub layer: Layer,
    pub deeds: Vec<Done>,
    /// Has the image an internal snapshot of its end?
    pub snapshot: bool,
}

impl Story {
    /// The number that its sectors carry.
    fn token(n: usize, deed: usize) -> u64 {
        (n * 16 + deed) as u64
    }

    /// A layer by chance. `bottom`: it may be raw.
    fn by_chance(n: usize, rng: &mut Rng, file: FileId, data: FileId) -> Story {
        let raw = n == 0 && rng.coin();
        let format = match raw {
            true => Format::Raw,
            false => Format::Qcow2(Layout::by_chance(rng)),
        };
        let mut sectors = SECTORS;
        if n == 0 && rng.below(3) == 0 {
            // A short backing file, or a long one.
            sectors = [SECTORS / 2 + 3, SECTORS - 1, SECTORS + 40][rng.below(3) as usize];
        }
        // A cluster of compressed ones has many users, and twice as many with a snapshot.
        let counts = matches!(format, Format::Qcow2(layout) if layout.refcount_bits >= 16);
        let has_data = matches!(format, Format::Qcow2(layout) if layout.data_file);
        let layer = Layer {
            name: format!("layer{n}"),
            format,
            file,
            data: has_data.then_some(data),
            sectors,
            file_filters: Vec::new(),
            filters: Vec::new(),
            options: String::new(),
        };
        let deeds = (0..2 + rng.below(4)).map(|_| Done::by_chance(&layer, rng));
        Story {
            deeds: possible(deeds.collect()),
            snapshot: !has_data && counts && rng.below(5) == 0,
            layer,
        }
    }

    /// What this history makes of what lies below it.
    fn content(&self, n: usize, below: &[Stamp]) -> Vec<Stamp> {
        let seen = (0..self.layer.sectors).map(|s| below.get(s as usize).copied().unwrap_or(0));
        let mut content: Vec<Stamp> = seen.collect();
        for (number, done) in self.deeds.iter().enumerate() {
            for sector in done.at..done.at + done.sectors {
                content[sector as usize] = match done.deed {
                    Deed::Write | Deed::Compressed => stamp(Story::token(n, number), sector),
                    Deed::Zeroes | Deed::Unmapped => 0,
                };
            }
        }
        content
    }
}

impl Done {
    fn by_chance(layer: &Layer, rng: &mut Rng) -> Done {
        let longest = [8, 64, 128][rng.below(3) as usize];
        let sectors = 1 + rng.below(longest);
        let at = rng.below(layer.sectors - sectors + 1);
        let mut deed = match rng.below(6) {
            0..3 => Deed::Write,
            3 => Deed::Zeroes,
            4 => Deed::Unmapped,
            _ => Deed::Compressed,
        };
        let Format::Qcow2(layout) = layer.format else {
            return Done {
                deed: Deed::Write,
                at,
                sectors,
            };
        };
        if !layout.compresses() && matches!(deed, Deed::Compressed) {
            deed = Deed::Write;
        }
        if let Deed::Compressed = deed {
            // Whole clusters, or there is nothing to compress.
            let per_cluster = layout.cluster_bytes / SECTOR;
            let at = at - at % per_cluster;
            let whole = sectors.next_multiple_of(per_cluster);
            if at + whole > layer.sectors {
                deed = Deed::Write;
            } else {
                return Done {
                    deed,
                    at,
                    sectors: whole,
                };
            }
        }
        Done { deed, at, sectors }
    }
}

/// QEMU compresses into clusters that were never allocated, and no others.
fn possible(mut deeds: Vec<Done>) -> Vec<Done> {
    let compresses = |done: &Done| matches!(done.deed, Deed::Compressed);
    deeds.sort_by_key(|done| !compresses(done));
    for n in 1..deeds.len() {
        let (before, rest) = deeds.split_at_mut(n);
        let done = &mut rest[0];
        let overlaps =
            |other: &Done| other.at < done.at + done.sectors && done.at < other.at + other.sectors;
        if compresses(done) && before.iter().any(overlaps) {
            done.deed = Deed::Write;
        }
    }
    deeds.sort_by_key(|done| !compresses(done));
    deeds
}

/// Stories for a whole chain.
fn stories(seed: u64, layers: Option<u64>) -> Vec<Story> {
    let mut rng = Rng::new(seed ^ 0x5709);
    let count = layers.unwrap_or(1 + rng.below(LAYERS_MAX));
    let mut stories: Vec<Story> = Vec::new();
    for n in 0..count as usize {
        let (file, data) = (FileId(2 * n as u32), FileId(2 * n as u32 + 1));
        let mut story = Story::by_chance(n, &mut rng, file, data);
        // What guests write to is a qcow2 image, and has the guest's size.
        if n + 1 == count as usize {
            while story.layer.format == Format::Raw || story.layer.sectors != SECTORS {
                story = Story::by_chance(n, &mut rng, file, data);
            }
        }
        stories.push(story);
    }
    stories
}

/// What the guest sees after each of the stories.
fn contents(stories: &[Story]) -> Vec<Vec<Stamp>> {
    let mut seen: Vec<Vec<Stamp>> = Vec::new();
    for (n, story) in stories.iter().enumerate() {
        let below = seen.last().map_or(&[][..], Vec::as_slice);
        let content = story.content(n, below);
        seen.push(content);
    }
    seen
}

/// What the guest reads of a layer that is as long as it is.
fn as_guest(content: &[Stamp]) -> Vec<Stamp> {
    let seen = (0..SECTORS as usize).map(|s| content.get(s).copied().unwrap_or(0));
    seen.collect()
}

impl Start {
    /// Made by QEMU's tools: one of some that are made once per process.
    pub fn by_qemu(seed: u64) -> Start {
        const COUNT: usize = QEMU_STARTS as usize;
        static STARTS: [OnceLock<Start>; COUNT] = [const { OnceLock::new() }; COUNT];
        let n = seed as usize % COUNT;
        let start = STARTS[n].get_or_init(|| make(n as u64));
        start.clone()
    }

    /// Made by our own engine, of this many layers or by chance.
    pub fn by_us(seed: u64, layers: Option<u64>) -> Result<Start, String> {
        let stories = stories(seed ^ 0x0c0c, layers);
        let mut images: Images = (0..FILES).map(|file| (FileId(file), Vec::new())).collect();
        let nature = Nature {
            seed,
            weather: Weather::CALM,
            block_bytes: 512,
            cache: Cache::Direct,
            room_bytes: 64 << 20,
            lanes: 1,
            mode: Mode::Fast,
        };
        for n in 0..stories.len() {
            images = add_layer(&stories[..=n], &images, nature)?;
        }
        Ok(Start::new(stories, images))
    }

    fn new(stories: Vec<Story>, images: Images) -> Start {
        let mut below = contents(&stories);
        let content = as_guest(&below.pop().expect("a layer"));
        Start {
            content,
            below: below.iter().map(|content| as_guest(content)).collect(),
            stack: Stack {
                layers: stories.into_iter().map(|story| story.layer).collect(),
            },
            images,
        }
    }
}

/// Makes the last of these layers, on files that hold the others.
fn add_layer(stories: &[Story], images: &Images, nature: Nature) -> Result<Images, String> {
    let mut layers = stories.iter().map(|story| story.layer.clone());
    let stack = Stack {
        layers: layers.by_ref().collect(),
    };
    let (layer, below) = stack.layers.split_last().ok_or("no layer")?;
    let mut images = images.clone();
    match layer.format {
        Format::Raw => {
            images.insert(layer.file, vec![0; (layer.sectors * SECTOR) as usize]);
        }
        Format::Qcow2(_) => {
            let mut world = World::bare(&images, nature);
            world.create(layer, below.last())?;
            images = world.disk.images();
        }
    }
    let mut world = World::open(&stack, &images, nature)?;
    let n = below.len();
    for (number, done) in stories[n].deeds.iter().enumerate() {
        let span = Span::new(done.at * SECTOR, done.sectors * SECTOR).ok_or("a span")?;
        let kind = match done.deed {
            Deed::Write | Deed::Compressed => Kind::Write(Durability::Cached),
            Deed::Zeroes => Kind::WriteZeroes(Unmap::Keep, Durability::Cached),
            Deed::Unmapped => Kind::WriteZeroes(Unmap::Allow, Durability::Cached),
        };
        let mem = match kind {
            Kind::Write(_) => Mem::zeroed(span.len as usize).ok_or("memory")?,
            _ => Mem::none(),
        };
        for sector in 0..mem.len() as u64 / SECTOR {
            let stamp = stamp(Story::token(n, number), done.at + sector);
            mem.store((sector * SECTOR) as usize, &bytes_of(stamp));
        }
        let asked = crash::ask(&mut world, kind, span, &mem);
        asked.map_err(|errno| format!("{done:?} of {}: {errno}", layer.name))?;
    }
    world.close()?;
    Ok(world.disk.images())
}

/// Makes a chain with qemu-img and qemu-io.
fn make(seed: u64) -> Start {
    let dir = tempfile::tempdir().expect("a directory");
    let stories = stories(seed, None);
    for (n, story) in stories.iter().enumerate() {
        create(dir.path(), n, &stories);
        act(dir.path(), n, story);
        if story.snapshot {
            let path = path(dir.path(), n);
            let words = ["snapshot".as_ref(), "-c".as_ref(), "past".as_ref()];
            qemu_img(words.into_iter().chain([path.as_os_str()])).expect("a snapshot");
        }
    }
    let mut images: Images = (0..FILES).map(|file| (FileId(file), Vec::new())).collect();
    for (n, story) in stories.iter().enumerate() {
        let bytes = std::fs::read(path(dir.path(), n)).expect("an image");
        images.insert(story.layer.file, bytes);
        if let Some(data) = story.layer.data {
            let bytes = std::fs::read(data_path(dir.path(), n)).expect("a data file");
            images.insert(data, bytes);
        }
    }
    Start::new(stories, images)
}

fn path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("layer{n}"))
}

fn data_path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("data{n}"))
}

fn create(dir: &Path, n: usize, stories: &[Story]) {
    let layer = &stories[n].layer;
    let size = (layer.sectors * SECTOR).to_string();
    let mut words: Vec<String> = ["create", "-q", "-f"].map(String::from).into();
    match layer.format {
        Format::Raw => words.push("raw".into()),
        Format::Qcow2(layout) => {
            words.extend(["qcow2".into(), "-o".into()]);
            words.push(create_options(&layout, &data_path(dir, n)));
            if n > 0 {
                let below = match stories[n - 1].layer.format {
                    Format::Raw => "raw",
                    Format::Qcow2(_) => "qcow2",
                };
                let backing = path(dir, n - 1).display().to_string();
                words.extend(["-b".into(), backing, "-F".into(), below.into()]);
            }
        }
    }
    words.extend([path(dir, n).display().to_string(), size]);
    qemu_img(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
}

fn create_options(layout: &Layout, data: &Path) -> String {
    let on = |yes| if yes { "on" } else { "off" };
    let cluster = layout.cluster_bytes;
    if layout.version == Version::V2 {
        return format!("compat=0.10,cluster_size={cluster}");
    }
    let compression = match layout.compression {
        Compression::Zlib => "zlib",
        Compression::Zstd => "zstd",
    };
    let mut options = format!(
        "compat=1.1,cluster_size={cluster},refcount_bits={},lazy_refcounts={},extended_l2={},compression_type={compression}",
        layout.refcount_bits,
        on(layout.lazy_refcounts),
        on(layout.subclusters),
    );
    if layout.data_file {
        options += &format!(",data_file={}", data.display());
    }
    options
}

fn act(dir: &Path, n: usize, story: &Story) {
    let mut words: Vec<String> = Vec::new();
    for (number, done) in story.deeds.iter().enumerate() {
        let (at, len) = (done.at * SECTOR, done.sectors * SECTOR);
        let pattern = dir.join(format!("pattern{number}"));
        let stamps = (done.at..done.at + done.sectors)
            .flat_map(|sector| bytes_of(stamp(Story::token(n, number), sector)));
        let bytes: Vec<u8> = stamps.collect();
        std::fs::write(&pattern, bytes).expect("a pattern");
        let pattern = pattern.display();
        let command = match done.deed {
            Deed::Write => format!("write -q -s {pattern} {at} {len}"),
            Deed::Compressed => format!("write -q -c -s {pattern} {at} {len}"),
            Deed::Zeroes => format!("write -q -z {at} {len}"),
            Deed::Unmapped => format!("write -q -z -u {at} {len}"),
        };
        words.extend(["-c".into(), command]);
    }
    let format = match story.layer.format {
        Format::Raw => "raw",
        Format::Qcow2(_) => "qcow2",
    };
    words.extend(["-f".into(), format.into()]);
    words.push(path(dir, n).display().to_string());
    qemu_io(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"));
}

/// Puts filters in random places of a stack.
pub fn with_filters(stack: &mut Stack, rng: &mut Rng) {
    let bottoms: Vec<String> = stack
        .layers
        .iter()
        .map(|layer| layer.name.clone())
        .collect();
    let count = stack.layers.len();
    for (n, layer) in stack.layers.iter_mut().enumerate() {
        let top = n + 1 == count;
        if rng.below(3) == 0 {
            layer.file_filters.push(match (rng.below(3), top) {
                (0, _) => Filter::Throttle,
                (1, true) => Filter::Preallocate,
                _ => Filter::Delay(rng.below(3) * 2000),
            });
        }
        if !top {
            if rng.below(4) == 0 {
                layer.push(Filter::Throttle);
            }
            continue;
        }
        let compresses = matches!(layer.format, Format::Qcow2(layout) if layout.compresses());
        if compresses && rng.below(6) == 0 {
            layer.push(Filter::Compress);
        }
        if rng.coin() {
            // It copies from the bottom and all above; without one, from everywhere.
            let bottom =
                (n > 0 && rng.coin()).then(|| bottoms[rng.below(n as u64) as usize].clone());
            layer.push(Filter::CopyOnRead(bottom));
        }
        if rng.below(3) == 0 {
            layer.push(Filter::Throttle);
        }
    }
}
