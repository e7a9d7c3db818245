//! Bitmaps in images, as qemu-img and qemu-nbd see them.

use super::nbd;
use super::qcow2::{run, text};
use blockgraph::driver::nbd::client::Server;
use std::path::Path;

/// What `qemu-img info` says of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub in_use: bool,
    pub auto: bool,
}

/// The bitmaps that `qemu-img info` lists, in order.
pub fn listed(path: &Path) -> Vec<Listed> {
    let info = run("qemu-img", &["info", text(path)]);
    let lines = info
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "bitmaps:");
    let mut all = Vec::new();
    let (mut in_use, mut auto) = (false, false);
    for line in lines.take_while(|line| !line.starts_with("refcount bits")) {
        in_use |= line.ends_with(": in-use");
        auto |= line.ends_with(": auto");
        if let Some(name) = line.strip_prefix("name: ") {
            let name = name.to_owned();
            all.push(Listed { name, in_use, auto });
            (in_use, auto) = (false, false);
        }
    }
    all
}

/// Runs of bytes that a bitmap calls dirty, according to the real qemu-nbd. Such an export is read-only.
pub fn dirty(path: &Path, bitmap: &str) -> Vec<(u64, u64)> {
    let dir = path.parent().expect("a directory");
    let socket = dir.join("dirty.sock");
    let args = [
        "-r",
        "-t",
        "-f",
        "qcow2",
        "-B",
        bitmap,
        "-k",
        text(&socket),
        text(path),
    ];
    let _running = nbd::start(&Server::Unix(socket.clone()), "qemu-nbd", &args);
    let socket = text(&socket);
    let client = format!(
        "driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
    );
    let map = run(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &client],
    );
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for line in map.lines().filter(|line| line.contains("\"start\"")) {
        let number = |name: &str| {
            let from = line.find(&format!("\"{name}\": ")).expect("a field") + name.len() + 4;
            let digits = line[from..].split(',').next().expect("a value");
            digits.parse::<u64>().expect("a number")
        };
        // The client shows what is dirty as what has no data.
        if line.contains("\"data\": false") {
            let (at, len) = (number("start"), number("length"));
            match runs.last_mut() {
                Some(last) if last.0 + last.1 == at => last.1 += len,
                _ => runs.push((at, len)),
            }
        }
    }
    runs
}
