//! A stack of layers with filters anywhere between, and the `--blockdev` options that open it.

use ring::FileId;
use ring::sim::Rng;

/// How the clusters of a qcow2 layer lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub cluster_bytes: u64,
    pub version: Version,
    pub subclusters: bool,
    pub refcount_bits: u32,
    pub lazy_refcounts: bool,
    pub compression: Compression,
    /// Guest data is in a file of its own.
    pub data_file: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V2,
    V3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Zlib,
    Zstd,
}

impl Layout {
    pub fn by_chance(rng: &mut Rng) -> Layout {
        let version = match rng.below(6) {
            0 => Version::V2,
            _ => Version::V3,
        };
        let v3 = version == Version::V3;
        let subclusters = v3 && rng.below(4) == 0;
        let cluster_bytes = match subclusters {
            // A subcluster is a 32nd, and not less than a sector.
            true => [16384, 32768][rng.below(2) as usize],
            false => [512, 1024, 4096, 4096, 16384][rng.below(5) as usize],
        };
        let refcount_bits = match v3 {
            true => [1, 2, 4, 8, 16, 16, 32, 64][rng.below(8) as usize],
            false => 16,
        };
        let data_file = v3 && rng.below(6) == 0;
        Layout {
            cluster_bytes,
            version,
            subclusters,
            refcount_bits,
            lazy_refcounts: v3 && rng.below(4) == 0,
            compression: match v3 && rng.coin() {
                true => Compression::Zstd,
                false => Compression::Zlib,
            },
            data_file,
        }
    }

    /// Can it hold compressed clusters?
    pub fn compresses(&self) -> bool {
        !self.data_file
    }
}

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2(Layout),
}

/// A filter, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    Delay(u64),
    Throttle,
    /// With the name of the layer that bounds it, if any.
    CopyOnRead(Option<String>),
    Compress,
    /// Sets space aside at the end of a file.
    Preallocate,
}

impl Filter {
    pub fn options(&self) -> String {
        match self {
            Filter::Delay(ns) => format!("driver=x-delay,latency-ns={ns}"),
            Filter::Throttle => "driver=throttle,throttle-group=group".to_owned(),
            Filter::CopyOnRead(None) => "driver=copy-on-read".to_owned(),
            Filter::CopyOnRead(Some(bottom)) => format!("driver=copy-on-read,bottom={bottom}"),
            Filter::Compress => "driver=compress".to_owned(),
            Filter::Preallocate => {
                "driver=preallocate,prealloc-size=65536,prealloc-align=4096".to_owned()
            }
        }
    }
}

/// A filter and the node-name it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub name: String,
    pub filter: Filter,
}

impl Placed {
    /// One that was put there while the graph was in use.
    pub fn edited(name: String, filter: Filter) -> Placed {
        Placed {
            name: format!("edit-{name}"),
            filter,
        }
    }

    /// Was it? (After a crash it is opened like any other.)
    pub fn is_edit(&self) -> bool {
        self.name.starts_with("edit-")
    }
}

/// One layer: its files, filters between them and the format, the format, filters above it.
#[derive(Clone, Debug)]
pub struct Layer {
    pub name: String,
    pub format: Format,
    pub file: FileId,
    pub data: Option<FileId>,
    pub sectors: u64,
    /// On its file, lowest first.
    pub file_filters: Vec<Filter>,
    /// Above it, lowest first.
    pub filters: Vec<Placed>,
    /// More of its options, beginning with a comma.
    pub options: String,
}

/// Layers, bottom first.
#[derive(Clone, Debug)]
pub struct Stack {
    pub layers: Vec<Layer>,
}

/// A file node's name; the tests make those themselves.
pub fn file_name(file: FileId) -> String {
    format!("file{}", file.0)
}

/// A named node in a list of `--blockdev` values.
#[derive(Clone, Debug)]
pub struct Blockdev {
    pub name: String,
    pub options: String,
}

impl Layer {
    /// What the layer above, or the guest, sees of it.
    pub fn top(&self) -> String {
        let highest = self.filters.last().map(|placed| &placed.name);
        highest.unwrap_or(&self.name).clone()
    }

    /// Puts a filter on top of it.
    pub fn push(&mut self, filter: Filter) {
        let name = format!("{}-f{}", self.name, self.filters.len());
        self.filters.push(Placed { name, filter });
    }

    fn is_qcow2(&self) -> bool {
        matches!(self.format, Format::Qcow2(_))
    }

    /// The nodes of this layer, children first; `backing` is what lies below it, and `writable` whether guests write to it.
    pub fn blockdevs(&self, backing: Option<&str>, writable: bool) -> Vec<Blockdev> {
        let common = match writable {
            true => "read-only=off,discard=unmap",
            false => "read-only=on",
        };
        let mut nodes = Vec::new();
        let mut add = |name: String, options: String| {
            let options = format!("{options},node-name={name},{common}");
            nodes.push(Blockdev {
                name: name.clone(),
                options,
            });
            name
        };
        let mut below = file_name(self.file);
        for (n, filter) in self.file_filters.iter().enumerate() {
            let name = format!("{}-p{n}", self.name);
            below = add(name, format!("{},file={below}", filter.options()));
        }
        let format = match self.format {
            Format::Raw => format!("driver=raw,file={below}"),
            Format::Qcow2(_) => {
                let data = self.data.map(file_name);
                let data = data.map(|data| format!(",data-file={data}"));
                let backing = backing.map(|backing| format!(",backing={backing}"));
                let (data, backing) = (data.unwrap_or_default(), backing.unwrap_or_default());
                format!("driver=qcow2,file={below}{data}{backing}")
            }
        };
        below = add(self.name.clone(), format!("{format}{}", self.options));
        for Placed { name, filter } in &self.filters {
            let options = format!("{},file={below}", filter.options());
            below = add(name.clone(), options);
        }
        nodes
    }
}

impl Stack {
    pub fn top(&self) -> &Layer {
        self.layers.last().expect("a stack has a layer")
    }

    pub fn top_mut(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("a stack has a layer")
    }

    /// Every node but the files, children first.
    pub fn blockdevs(&self) -> Vec<Blockdev> {
        let mut nodes = Vec::new();
        let mut backing: Option<String> = None;
        for (n, layer) in self.layers.iter().enumerate() {
            let writable = n + 1 == self.layers.len();
            nodes.extend(layer.blockdevs(backing.as_deref(), writable));
            backing = Some(layer.top());
        }
        nodes
    }

    /// The files of the layers below the top one.
    pub fn base_files(&self) -> impl Iterator<Item = FileId> {
        let below = &self.layers[..self.layers.len() - 1];
        below
            .iter()
            .flat_map(|layer| [Some(layer.file), layer.data])
            .flatten()
    }

    /// The qcow2 layers.
    pub fn qcow2(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| layer.is_qcow2())
    }
}
