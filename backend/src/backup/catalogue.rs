//! What a directory of backups says of itself: `backups.json`.
//!
//! The rule: it names a backup only when that is complete and durable, and it is replaced whole: whoever reads it at any
//! time finds the last state that was whole.

use super::error::BackupError;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const NAME: &str = "backups.json";
const FORMAT: &str = "virtioblkd-backups";
const VERSION: u64 = 1;
/// A file longer than this is none of ours.
const LEN_BYTES_MAX: u64 = 64 << 20;

/// Is a backup the first of its chain?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It needs no other.
    Full,
    /// It has what changed since the one before.
    Incremental,
}

impl Kind {
    /// As it is written, and shown.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Full => "full",
            Kind::Incremental => "incremental",
        }
    }
}

/// One backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backup {
    /// Counts up from 0.
    pub number: u64,
    /// When it was taken, in seconds since 1970 (UTC).
    pub time_s: u64,
    /// Is it the first of its chain?
    pub kind: Kind,
    /// Its file, in the directory.
    pub file: String,
    /// The size of the disk, in bytes.
    pub size_bytes: u64,
    /// How much of it is in this backup.
    pub copied_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The bitmap in the daemon that has recorded changes since.
    pub bitmap: String,
}

/// All of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Catalogue {
    dir: PathBuf,
    /// Tells its things in the daemon from those of other directories: eight hexadecimal digits.
    pub id: String,
    /// Whose backups they are.
    pub node: String,
    /// The oldest first.
    pub backups: Vec<Backup>,
}

impl Catalogue {
    /// One of nothing.
    pub(super) fn new(dir: &Path, id: u32, node: &str) -> Catalogue {
        Catalogue {
            dir: dir.to_owned(),
            id: format!("{id:08x}"),
            node: node.to_owned(),
            backups: Vec::new(),
        }
    }

    /// What a directory has; `None` if it says nothing. Errors: it cannot be read, or makes no sense.
    pub(super) fn load(dir: &Path) -> Result<Option<Catalogue>, BackupError> {
        let path = dir.join(NAME);
        let cannot = |source| BackupError::file(&path, "cannot be read")(source);
        let len = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot(error)),
        };
        let senseless = |why: &str| BackupError::Catalogue {
            path: path.clone(),
            why: why.to_owned(),
        };
        if len > LEN_BYTES_MAX {
            return Err(senseless("is too long for a list of backups"));
        }
        let text = fs::read(&path).map_err(cannot)?;
        let value: Value = serde_json::from_slice(&text).map_err(|e| senseless(&e.to_string()))?;
        let read = read_all(dir, &value);
        read.map(Some)
            .ok_or_else(|| senseless("is no list of backups of a version known here"))
    }

    /// Replaces what the directory says, durably.
    pub(super) fn store(&self) -> Result<(), BackupError> {
        let backups: Vec<Value> = self.backups.iter().map(written).collect();
        let text = json!({
            "format": FORMAT, "version": VERSION, "id": self.id, "node": self.node, "backups": backups,
        });
        let (path, new) = (self.dir.join(NAME), self.dir.join(".backups.json.new"));
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&new)?;
            writeln!(file, "{text:#}")?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(BackupError::file(&path, "cannot be written"))
    }

    /// The last backup.
    pub(super) fn last(&self) -> Option<&Backup> {
        self.backups.last()
    }

    /// The number of the next.
    pub(super) fn next_number(&self) -> u64 {
        self.last().map_or(0, |last| last.number + 1)
    }

    /// What the backup at `index` consists of, its full one first.
    pub(super) fn chain(&self, index: usize) -> &[Backup] {
        let upto = &self.backups[..=index];
        let first = upto.iter().rposition(|backup| backup.kind == Kind::Full);
        &upto[first.unwrap_or(0)..]
    }

    /// Where a file of it is.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

fn written(backup: &Backup) -> Value {
    json!({
        "number": backup.number,
        "time": backup.time_s,
        "kind": backup.kind.name(),
        "file": backup.file,
        "size": backup.size_bytes,
        "copied": backup.copied_bytes,
        "sha256": backup.sha256,
        "bitmap": backup.bitmap,
    })
}

fn read_all(dir: &Path, value: &Value) -> Option<Catalogue> {
    if value["format"] != FORMAT || value["version"] != VERSION {
        return None;
    }
    let id = value["id"].as_str()?;
    if id.len() != 8 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let backups: Option<Vec<Backup>> = value["backups"].as_array()?.iter().map(read).collect();
    let backups = backups?;
    let numbers_rise = backups.is_sorted_by(|a, b| a.number < b.number);
    let begins_full = backups.first().is_none_or(|first| first.kind == Kind::Full);
    (numbers_rise && begins_full).then_some(Catalogue {
        dir: dir.to_owned(),
        id: id.to_owned(),
        node: value["node"].as_str()?.to_owned(),
        backups,
    })
}

fn read(value: &Value) -> Option<Backup> {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let file = text("file")?;
    // A name, and not a way to somewhere else.
    if file.contains('/') || file.starts_with('.') {
        return None;
    }
    Some(Backup {
        number: value["number"].as_u64()?,
        time_s: value["time"].as_u64()?,
        kind: [Kind::Full, Kind::Incremental]
            .into_iter()
            .find(|kind| value["kind"] == kind.name())?,
        file,
        size_bytes: value["size"].as_u64()?,
        copied_bytes: value["copied"].as_u64()?,
        sha256: text("sha256")?,
        bitmap: text("bitmap")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(number: u64, kind: Kind) -> Backup {
        Backup {
            number,
            time_s: 1,
            kind,
            file: format!("{number}.qcow2"),
            size_bytes: 10,
            copied_bytes: 5,
            sha256: "0".into(),
            bitmap: "b".into(),
        }
    }

    #[test]
    fn what_was_stored_is_loaded_and_chains_begin_with_their_full_backup() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Catalogue::load(dir.path()).unwrap(), None);
        let mut catalogue = Catalogue::new(dir.path(), 0xab, "disk");
        let kinds = [Kind::Full, Kind::Incremental, Kind::Full, Kind::Incremental];
        for (number, kind) in kinds.into_iter().enumerate() {
            catalogue.backups.push(backup(number as u64, kind));
        }
        catalogue.store().unwrap();
        let loaded = Catalogue::load(dir.path()).unwrap().unwrap();
        assert_eq!(loaded, catalogue);
        let numbers = |at| {
            loaded
                .chain(at)
                .iter()
                .map(|b| b.number)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (numbers(1), numbers(2), numbers(3)),
            (vec![0, 1], vec![2], vec![2, 3])
        );
        assert_eq!(loaded.next_number(), 4);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut catalogue = Catalogue::new(dir.path(), 0xab, "disk");
        catalogue.backups.push(backup(0, Kind::Full));
        catalogue.store().unwrap();
        let path = dir.path().join(NAME);
        let good = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("virtioblkd-backups", "other"),
            ("000000ab", "../../ab"),
            ("\"0.qcow2\"", "\"../0.qcow2\""),
            ("\"full\"", "\"incremental\""),
            ("\"number\": 0", "\"number\": -1"),
            ("}", ""),
        ] {
            assert!(good.contains(from), "{from}");
            fs::write(&path, good.replace(from, to)).unwrap();
            assert!(Catalogue::load(dir.path()).is_err(), "{from} -> {to}");
        }
    }
}
