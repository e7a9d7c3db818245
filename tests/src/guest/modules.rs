//! Which kernel modules the guest loads, and in which order.
//!
//! The rule to know: the package is unpacked, not installed, so there is no `modules.dep`: each module is asked for its own `depends=`.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the guest needs beyond the kernel image. A name that is built into the kernel is left out of the list.
const WANTED: [&str; 4] = [
    "virtio_pci",
    "virtio_blk",
    // Asked for by name through the crypto interface, so no `depends=` mentions it.
    "crc32c_generic",
    "ext4",
];

/// A module, ready for insmod.
#[derive(Debug)]
pub(super) struct Module {
    /// As the kernel spells it, with underscores.
    pub(super) name: String,
    /// The ELF object, decompressed.
    pub(super) object: Vec<u8>,
}

/// The wanted modules of the kernel whose modules are under `root`, each after those it depends on.
///
/// # Errors
/// What reading the modules says; `NotFound` for a wanted module that neither exists nor is built in.
pub(super) fn in_load_order(root: &Path) -> io::Result<Vec<Module>> {
    let index = index(root)?;
    let builtin = builtin(root)?;
    let mut order: Vec<Module> = Vec::new();
    let mut stack: Vec<(String, bool)> = WANTED
        .iter()
        .rev()
        .map(|n| (n.to_string(), false))
        .collect();
    let mut waiting: HashMap<String, Vec<u8>> = HashMap::new();
    while let Some((name, dependencies_done)) = stack.pop() {
        if builtin.contains(&name) || order.iter().any(|m| m.name == name) {
            continue;
        }
        if dependencies_done {
            let object = waiting.remove(&name).unwrap_or_default();
            order.push(Module { name, object });
            continue;
        }
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("kernel module {name}"));
        let object = read_object(index.get(&name).ok_or_else(missing)?)?;
        let depends = depends(&object);
        waiting.insert(name.clone(), object);
        stack.push((name, true));
        stack.extend(depends.into_iter().map(|d| (d, false)));
    }
    Ok(order)
}

fn index(root: &Path) -> io::Result<HashMap<String, PathBuf>> {
    let mut found = HashMap::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

fn builtin(root: &Path) -> io::Result<Vec<String>> {
    let list = std::fs::read_to_string(root.join("modules.builtin"))?;
    Ok(list
        .lines()
        .filter_map(|l| module_name(Path::new(l)))
        .collect())
}

fn module_name(path: &Path) -> Option<String> {
    let (stem, rest) = path.file_name()?.to_str()?.split_once('.')?;
    rest.starts_with("ko").then(|| stem.replace('-', "_"))
}

/// Debian 12 ships modules plain, Debian 13 as `.ko.xz`.
fn read_object(path: &Path) -> io::Result<Vec<u8>> {
    if path.extension().is_none_or(|e| e != "xz") {
        return std::fs::read(path);
    }
    let output = Command::new("xz").arg("-dc").arg(path).output()?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(told));
    }
    Ok(output.stdout)
}

/// The names after `depends=` in the module's `.modinfo`, a section of NUL-terminated strings.
fn depends(object: &[u8]) -> Vec<String> {
    let list = object
        .split(|&b| b == 0)
        .find_map(|s| s.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(list.unwrap_or_default()).into_owned();
    let names = list.split(',').filter(|n| !n.is_empty());
    names.map(|n| n.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let object = b"\x7fELF\0license=GPL\0depends=jbd2,crc32c-intel,mbcache\0name=ext4\0";
        assert_eq!(depends(object), ["jbd2", "crc32c_intel", "mbcache"]);
        assert!(depends(b"license=GPL\0depends=\0").is_empty());
    }

    #[test]
    fn module_names_lose_suffix_and_dashes() {
        assert_eq!(
            module_name(Path::new("kernel/crypto/crc32c-generic.ko.xz")),
            Some("crc32c_generic".into())
        );
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
