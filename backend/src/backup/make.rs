//! One more backup: decide how much, take the instant, copy, verify, list it, clean up.

use super::EXPORT;
use super::catalogue::{Backup, Catalogue, Kind};
use super::command::{Extent, Make, Verification};
use super::digest;
use super::disks::{Disks, Task};
use super::error::BackupError;
use super::lock::Lock;
use super::plan::{Rule, Source};
use super::progress::Progress;
use super::remote::{NodeState, Remote, Serving, Taking};
use crate::units;
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where this process said that it started an NBD server, for whoever finds that it was cut off.
const SERVING: &str = ".serving";

pub(super) fn make(make: &Make, progress: &mut Progress<'_>) -> Result<String, BackupError> {
    fs::create_dir_all(&make.dir).map_err(BackupError::file(&make.dir, "cannot be made"))?;
    // The daemon may have another working directory.
    let dir = fs::canonicalize(&make.dir).map_err(BackupError::file(&make.dir, "is not there"))?;
    let _lock = Lock::take(&dir)?;
    let catalogue = load(&dir, make)?;
    let remote = Remote::connect(&make.socket, &catalogue)?;
    let mut attempt = Attempt {
        make,
        files: Files::new(&dir, make.scratch.as_deref(), &catalogue)?,
        dir,
        catalogue,
        remote,
    };
    // What a backup left that was cut off.
    attempt.settle()?;
    let made = attempt.take(progress);
    progress.end();
    let settled = attempt.settle();
    let made = made?;
    settled?;
    Ok(made)
}

fn load(dir: &Path, make: &Make) -> Result<Catalogue, BackupError> {
    match Catalogue::load(dir)? {
        Some(catalogue) if catalogue.node != make.node => Err(BackupError::OtherNode {
            theirs: catalogue.node,
            asked: make.node.clone(),
        }),
        Some(catalogue) => Ok(catalogue),
        None => {
            let catalogue = Catalogue::new(dir, random(), &make.node);
            // So that whatever is left in the daemon can be found by its name.
            catalogue.store()?;
            Ok(catalogue)
        }
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => u32::from_ne_bytes(bytes),
        Err(_) => std::process::id(),
    }
}

/// Files that a backup needs only while it is being made.
#[derive(Debug)]
struct Files {
    /// For what the guest overwrites meanwhile.
    scratch: PathBuf,
    /// Where the snapshot is served: a socket's name may not be long, so it is not in the directory.
    socket_dir: PathBuf,
    /// Says that the daemon's NBD server is ours.
    serving: PathBuf,
}

impl Files {
    fn new(
        dir: &Path,
        scratch: Option<&Path>,
        catalogue: &Catalogue,
    ) -> Result<Files, BackupError> {
        let scratch_dir = match scratch {
            None => dir.to_owned(),
            Some(other) => {
                fs::canonicalize(other).map_err(BackupError::file(other, "is not there"))?
            }
        };
        Ok(Files {
            scratch: scratch_dir.join(format!(".scratch-{}.raw", catalogue.id)),
            socket_dir: std::env::temp_dir().join(format!("virtioblkd-backup-{}", catalogue.id)),
            serving: dir.join(SERVING),
        })
    }

    fn socket(&self) -> PathBuf {
        self.socket_dir.join("nbd.sock")
    }

    fn make(&self, size_bytes: u64) -> Result<(), BackupError> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let cannot = |path| BackupError::file(path, "cannot be made");
        let scratch = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.scratch)
            .map_err(cannot(&self.scratch))?;
        scratch.set_len(size_bytes).map_err(cannot(&self.scratch))?;
        let made = fs::DirBuilder::new().mode(0o700).create(&self.socket_dir);
        made.map_err(cannot(&self.socket_dir))?;
        File::create(&self.serving).map_err(cannot(&self.serving))?;
        Ok(())
    }

    fn serving(&self) -> Serving {
        match self.serving.exists() {
            true => Serving::Ours,
            false => Serving::Others,
        }
    }

    fn remove(&self) -> Result<(), BackupError> {
        for file in [&self.socket(), &self.scratch, &self.serving] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(BackupError::file(file, "cannot be removed")(error));
                }
                _ => {}
            }
        }
        // In a directory for everybody: a link that somebody put there is not followed, and stays.
        let _ = fs::remove_dir(&self.socket_dir);
        Ok(())
    }
}

struct Attempt<'a> {
    make: &'a Make,
    dir: PathBuf,
    catalogue: Catalogue,
    remote: Remote,
    files: Files,
}

impl Attempt<'_> {
    /// The daemon is as it was, and so is the directory, but for what is listed.
    fn settle(&mut self) -> Result<(), BackupError> {
        let last = self.catalogue.last().map(|last| last.bitmap.clone());
        self.remote.settle(last.as_deref(), self.files.serving())?;
        self.files.remove()?;
        let part = self.part();
        match fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(BackupError::file(&part, "cannot be removed")(error))
            }
            _ => Ok(()),
        }
    }

    fn part(&self) -> PathBuf {
        self.dir
            .join(format!("{:04}.part", self.catalogue.next_number()))
    }

    fn take(&mut self, progress: &mut Progress<'_>) -> Result<String, BackupError> {
        let state = self.remote.node_state()?;
        let base = match self.base(&state) {
            Ok(base) => Some(base),
            Err(why) => {
                progress.say(&format!("full backup: {why}"));
                None
            }
        };
        let number = self.catalogue.next_number();
        let bitmap = self.remote.bitmap_name(number);
        self.files.make(state.size_bytes)?;
        let socket = self.files.socket();
        self.remote.begin(&Taking {
            begins: &bitmap,
            ends: base.as_ref().map(|base| &base.bitmap[..]),
            is_persistent: state.keeps_bitmaps,
            scratch: &self.files.scratch,
            socket: &socket,
        })?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let time_s = since.map_or(0, |since| since.as_secs());
        let copied_bytes = self.copy(&state, base.as_ref(), progress)?;
        let kind = match base {
            Some(_) => Kind::Incremental,
            None => Kind::Full,
        };
        let file = format!("{number:04}-{}.qcow2", kind.name());
        let mut backup = Backup {
            number,
            time_s,
            kind,
            file,
            size_bytes: state.size_bytes,
            copied_bytes,
            sha256: String::new(),
            bitmap,
        };
        self.list(&mut backup, progress)?;
        Ok(format!(
            "backup {number}: {} of {} ({}) in {}\n",
            units::bytes(copied_bytes as f64),
            units::bytes(state.size_bytes as f64),
            backup.kind.name(),
            self.catalogue.path(&backup.file).display()
        ))
    }

    /// What the next backup goes on top of. Errors: why it has to be a full one.
    fn base(&self, state: &NodeState) -> Result<Backup, String> {
        let last = self.catalogue.last().ok_or("it is the first")?;
        if self.make.extent == Extent::Full {
            return Err("as asked for".to_owned());
        }
        let bitmap = state
            .bitmaps
            .iter()
            .find(|bitmap| bitmap.name == last.bitmap);
        let bitmap =
            bitmap.ok_or("the daemon does not know what has changed since the last backup")?;
        if !bitmap.is_consistent {
            return Err("the record of what has changed is inconsistent".to_owned());
        }
        if last.size_bytes != state.size_bytes {
            return Err("the disk has another size than at the last backup".to_owned());
        }
        if !self.catalogue.path(&last.file).exists() {
            return Err(format!("{} is missing", last.file));
        }
        Ok(last.clone())
    }

    /// Copies and verifies; how many bytes it was.
    fn copy(
        &mut self,
        state: &NodeState,
        base: Option<&Backup>,
        progress: &mut Progress<'_>,
    ) -> Result<u64, BackupError> {
        let mut disks = Disks::new()?;
        let part = self.part();
        disks.create(&part, state.size_bytes, base.map(|base| &base.file[..]))?;
        let source = self.source(&mut disks, state, base)?;
        let target = json!({
            "driver": "qcow2", "node-name": "target",
            "file": {"driver": "file", "filename": part, "node-name": "target-file"},
        });
        let target = disks.open(target)?;
        progress.begin("counting", 0);
        let total = disks.count(source, &mut |bytes| progress.advance(bytes))?;
        progress.begin("copying", total);
        disks.each_part(Task::Copy, source, target, &mut |bytes| {
            progress.advance(bytes)
        })?;
        disks.flush(target)?;
        if self.make.verification == Verification::Compare {
            progress.begin("verifying", total);
            disks.each_part(Task::Compare, source, target, &mut |bytes| {
                progress.advance(bytes)
            })?;
        }
        disks.close("target")?;
        Ok(total)
    }

    fn source(
        &self,
        disks: &mut Disks,
        state: &NodeState,
        base: Option<&Backup>,
    ) -> Result<Source, BackupError> {
        let server = json!({"type": "unix", "path": self.files.socket()});
        let mut node = json!({
            "driver": "nbd", "node-name": "snapshot", "read-only": true, "export": EXPORT,
            "server": server,
        });
        let data = disks.open(node.clone())?;
        let (what, rule) = match base {
            None => (data, Rule::NotZero),
            Some(base) => {
                node["node-name"] = json!("changes");
                node["x-dirty-bitmap"] = json!(format!("qemu:dirty-bitmap:{}", base.bitmap));
                (disks.open(node)?, Rule::Dirty)
            }
        };
        Ok(Source {
            data,
            what,
            rule,
            size_bytes: state.size_bytes,
        })
    }

    /// The file gets its name, and then the list a line: from here on the backup is there.
    fn list(
        &mut self,
        backup: &mut Backup,
        progress: &mut Progress<'_>,
    ) -> Result<(), BackupError> {
        let (part, path) = (self.part(), self.catalogue.path(&backup.file));
        let len = fs::metadata(&part).map_or(0, |meta| meta.len());
        progress.begin("digesting", len);
        backup.sha256 = digest::of_file(&part, &mut |bytes| progress.advance(bytes))?;
        let name = || -> std::io::Result<()> {
            File::open(&part)?.sync_all()?;
            fs::rename(&part, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        name().map_err(BackupError::file(&path, "cannot be made"))?;
        self.catalogue.backups.push(backup.clone());
        if let Err(error) = self.catalogue.store() {
            // What is not listed is not there.
            self.catalogue.backups.pop();
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(())
    }
}
