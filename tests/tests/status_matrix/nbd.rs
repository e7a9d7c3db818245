//! The same through NBD: our server and the real qemu-storage-daemon, each serving every image.

use super::images::{self, Image, NULL, run, text};
use super::{Range, map_of_files, merged, null_options, qemu_map};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tests::daemon::Kind;

/// A server of all images, by their names.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn options(image: &Image) -> String {
    let top = &image.layers[0];
    let name = &image.name;
    match top.format {
        NULL => format!("{},node-name={name}", null_options(text(&top.path))),
        format => format!(
            "driver={format},node-name={name},read-only=on,file.driver=file,file.filename={}",
            text(&top.path)
        ),
    }
}

fn serve(kind: Kind, dir: &Path, images: &[Image]) -> Server {
    let socket = dir.join(kind.name());
    let pidfile = dir.join(format!("{}.pid", kind.name()));
    let mut command = Command::new(kind.program().expect("built"));
    command.args([
        "--nbd-server",
        &format!("addr.type=unix,addr.path={}", text(&socket)),
    ]);
    for image in images {
        let name = &image.name;
        command.args(["--blockdev", &options(image)]);
        let export = format!("type=nbd,id={name},node-name={name},name={name},allocation-depth=on");
        command.args(["--export", &export]);
    }
    command.arg("--pidfile").arg(&pidfile);
    let mut child = command.stdin(Stdio::null()).spawn().expect("started");
    while !pidfile.exists() {
        assert_eq!(
            child.try_wait().expect("asked"),
            None,
            "{} ended",
            kind.name()
        );
        std::thread::yield_now();
    }
    Server { child, socket }
}

impl Server {
    fn map(&self, image: &Image) -> Vec<Range> {
        let socket = text(&self.socket);
        let options = format!(
            "driver=nbd,server.type=unix,server.path={socket},export={}",
            image.name
        );
        qemu_map(&["--image-opts", &options])
    }

    /// Runs of equal depth: length and depth.
    fn depths(&self, image: &Image) -> Vec<(u64, u64)> {
        let uri = format!("nbd+unix:///{}?socket={}", image.name, text(&self.socket));
        let said = run("nbdinfo", &["--json", "--map=qemu:allocation-depth", &uri]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        let mut depths: Vec<(u64, u64)> = Vec::new();
        for range in said.as_array().expect("a list") {
            let number = |name: &str| range[name].as_u64().expect("a number");
            match depths.last_mut() {
                Some((len, depth)) if *depth == number("type") => *len += number("length"),
                _ => depths.push((number("length"), number("type"))),
            }
        }
        depths
    }
}

/// What NBD can say of a range: is it a hole, does it read as zeroes?
fn said_by_nbd(ranges: Vec<Range>) -> Vec<Range> {
    let ranges = ranges.into_iter().map(|range| Range {
        depth: 0,
        present: true,
        compressed: false,
        offset: range.data.then_some(range.start),
        ..range
    });
    merged(ranges.collect())
}

#[test]
fn our_export_says_of_every_image_what_the_files_and_a_real_server_say() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut images = images::all(dir.path());
    // The servers open images by the names in them: without filters these are the same again.
    images.retain(|image| image.filters == 0);
    assert!(images.len() >= 40, "{}", images.len());
    let ours = serve(Kind::Virtioblkd, dir.path(), &images);
    let theirs = serve(Kind::QemuStorageDaemon, dir.path(), &images);
    let mut differences = Vec::new();
    for image in &images {
        let (map, real) = (ours.map(image), theirs.map(image));
        if map != real {
            differences.push(format!(
                "{}: map\n  ours {map:?}\n  real {real:?}",
                image.name
            ));
        }
        let files = said_by_nbd(map_of_files(image));
        if said_by_nbd(map.clone()) != files {
            differences.push(format!(
                "{}: files\n  ours {map:?}\n  files {files:?}",
                image.name
            ));
        }
        let (depths, mut real) = (ours.depths(image), theirs.depths(image));
        if image.name == "null-off" {
            // Nothing is below it, so it is this node that decides; QEMU says that nobody does.
            assert_eq!(real, [(1 << 20, 0)]);
            real = vec![(1 << 20, 1)];
        }
        if depths != real {
            differences.push(format!(
                "{}: depth\n  ours {depths:?}\n  real {real:?}",
                image.name
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
