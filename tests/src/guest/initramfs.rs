//! Builds the guest's root file system, once, into the guest cache: busybox, fio, the file system tools, their libraries, the modules.
//!
//! The rule to know: the archive's name holds a digest of all that went into it, so a stale one is never used.

use super::cpio::CpioWriter;
use super::modules;
use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{self, BufWriter};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const INIT: &str = include_str!("init.sh");

/// Programs of the host's that the guest gets, with the libraries they name.
const PROGRAMS: [&str; 7] = [
    // Debian's busybox has a shell that prefers its own applets to these programs, whatever PATH says.
    "dash",
    "fio",
    "mkfs.ext4",
    "e2fsck",
    "fstrim",
    "blkdiscard",
    "blockdev",
];
const PROGRAM_DIRECTORIES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// The kernel and the root file system to boot.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// The compressed kernel, as `-kernel` takes it.
    pub(super) kernel: PathBuf,
    /// The initramfs, as `-initrd` takes it.
    pub(super) initramfs: PathBuf,
}

/// Finds or builds what to boot in `cache`, the directory that `ci/setup.sh` filled.
///
/// The caller holds the cache's lock: two builders at once would delete each other's work.
///
/// # Errors
/// `NotFound` naming the missing program or file, with `ci/setup.sh` as the cure; else what the file system says.
pub(super) fn prepare(cache: &Path) -> io::Result<Image> {
    let kernel = only_entry(&cache.join("kernel/boot"), "vmlinuz-")?;
    let modules = only_entry(&cache.join("kernel/lib/modules"), "")?;
    let files = program_files()?;
    let initramfs = cache.join(format!("initramfs-{:016x}.cpio", digest(&kernel, &files)?));
    if !initramfs.exists() {
        remove_old(cache)?;
        let unfinished = cache.join("initramfs.new");
        write_archive(&unfinished, &files, &modules)?;
        fs::rename(&unfinished, &initramfs)?;
    }
    Ok(Image { kernel, initramfs })
}

fn only_entry(directory: &Path, prefix: &str) -> io::Result<PathBuf> {
    let entries = fs::read_dir(directory).map_err(|e| with_path(e, directory))?;
    let starts = |e: &fs::DirEntry| e.file_name().to_string_lossy().starts_with(prefix);
    let found = entries.filter_map(Result::ok).find(starts);
    found.map(|e| e.path()).ok_or_else(|| missing(directory))
}

fn missing(what: &Path) -> io::Error {
    let message = format!("{} is missing: run ci/setup.sh", what.display());
    io::Error::new(io::ErrorKind::NotFound, message)
}

fn with_path(error: io::Error, path: &Path) -> io::Error {
    let message = format!("{}: {error} (was ci/setup.sh run?)", path.display());
    io::Error::new(error.kind(), message)
}

/// Every program and every library it names, by absolute path; the set is sorted and free of doubles.
fn program_files() -> io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::from([find_program("busybox")?]);
    for name in PROGRAMS {
        let program = find_program(name)?;
        files.extend(libraries(&program)?);
        files.insert(program);
    }
    Ok(files)
}

fn find_program(name: &str) -> io::Result<PathBuf> {
    let mut places = PROGRAM_DIRECTORIES.iter().map(|d| Path::new(d).join(name));
    places
        .find(|p| p.exists())
        .ok_or_else(|| missing(Path::new(name)))
}

/// The absolute paths in ldd's answer: libraries (`name => path (address)`) and the loader (`path (address)`).
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "ldd {}: {output:?}",
            program.display()
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split_whitespace().filter(|w| w.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

fn digest(kernel: &Path, files: &BTreeSet<PathBuf>) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    INIT.hash(&mut hasher);
    for path in files.iter().map(PathBuf::as_path).chain([kernel]) {
        let metadata = fs::metadata(path).map_err(|e| with_path(e, path))?;
        (path, metadata.len(), metadata.mtime()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn remove_old(cache: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("initramfs") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn write_archive(to: &Path, files: &BTreeSet<PathBuf>, modules: &Path) -> io::Result<()> {
    let mut archive = CpioWriter::new(BufWriter::new(File::create(to)?));
    let mut directories: BTreeSet<PathBuf> = ["dev", "proc", "sys", "tmp", "modules", "bin"]
        .iter()
        .map(PathBuf::from)
        .collect();
    for file in files {
        let parents = file
            .ancestors()
            .skip(1)
            .filter_map(|p| p.strip_prefix("/").ok());
        directories.extend(
            parents
                .filter(|p| !p.as_os_str().is_empty())
                .map(Path::to_path_buf),
        );
    }
    for directory in &directories {
        archive.directory(&directory.to_string_lossy())?;
    }
    // The kernel opens it for the first process before /dev is mounted.
    archive.character_device("dev/console", 5, 1)?;
    for file in files {
        let inside = file.to_string_lossy();
        archive.file(inside.trim_start_matches('/'), &fs::read(file)?)?;
    }
    if !files.contains(Path::new("/bin/busybox")) {
        archive.symlink("bin/busybox", "/usr/bin/busybox")?;
    }
    add_modules(&mut archive, modules)?;
    archive.file("init", INIT.as_bytes())?;
    archive.finish().map(drop)
}

fn add_modules(archive: &mut CpioWriter<BufWriter<File>>, root: &Path) -> io::Result<()> {
    let mut order = String::new();
    for module in modules::in_load_order(root)? {
        archive.file(&format!("modules/{}.ko", module.name), &module.object)?;
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes())
}
