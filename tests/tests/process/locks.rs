//! Others at the same image: qemu-img, qemu-io, a second daemon. Each is told what it would be told with
//! qemu-storage-daemon in our place.

use std::path::Path;
use std::process::{Command, Output};

use tests::client::starter::Kind;

use super::support::{Place, Process, Start, export, file};

const LEN: u64 = 1 << 20;
const KINDS: [Kind; 2] = [Kind::QemuStorageDaemon, Kind::Virtioblkd];

fn arguments(disk: &Path, socket: &Path, options: &str) -> Vec<String> {
    let mut arguments = file("f", disk, options);
    let export = match options.contains("read-only=on") {
        true => export("e", "f", socket, "")
            .into_iter()
            .map(|word| word.replace("writable=on", "writable=off"))
            .collect(),
        false => export("e", "f", socket, ""),
    };
    arguments.extend(export);
    arguments
}

/// A daemon that holds `disk`.
fn hold(kind: Kind, disk: &Path, socket: &Path, options: &str) -> Process {
    let start = Start::new(arguments(disk, socket, options)).kind(kind);
    let process = start.spawn();
    // QSD notifies nobody; both bind before they listen, and a path that accepts is past its locks.
    super::support::until("it serves", || {
        assert!(process.alive(), "{}", process.stderr());
        let table = std::fs::read_to_string("/proc/net/unix").unwrap();
        let name = socket.to_str().unwrap();
        table
            .lines()
            .any(|l| l.ends_with(name) && l.split_whitespace().nth(3) == Some("00010000"))
    });
    process
}

/// What is the same whoever holds the image: no directory of this test, no program's name, no time.
fn text(output: &Output, place: &Place) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).replace(place.root().to_str().unwrap(), "DIR");
    let lines = said
        .lines()
        .filter(|l| !l.contains(" ops; ") && !l.contains("Run completed"));
    format!(
        "{:?}\n{}",
        output.status.code(),
        lines.collect::<Vec<_>>().join("\n")
    )
}

const TOOLS: &[&str] = &[
    "qemu-img info DIR/d",
    "qemu-img info -U DIR/d",
    "qemu-img check -f raw DIR/d",
    "qemu-img map -f raw DIR/d",
    "qemu-img map -U -f raw DIR/d",
    "qemu-img bench -f raw -c 8 -d 1 -s 512 DIR/d",
    "qemu-img bench -U -f raw -c 8 -d 1 -s 512 DIR/d",
    "qemu-img bench -w -f raw -c 8 -d 1 -s 512 DIR/d",
    "qemu-img resize -f raw DIR/d 2M",
    "qemu-img convert -f raw -O raw DIR/d DIR/copy",
    "qemu-img convert -U -f raw -O raw DIR/d DIR/copy",
    "qemu-img convert -n -f raw -O raw DIR/other DIR/d",
    "qemu-io -f raw -c read*0*512 DIR/d",
    "qemu-io -U -r -f raw -c read*0*512 DIR/d",
    "qemu-io -f raw -c write*0*512 DIR/d",
];

#[test]
fn tools_are_answered_as_with_qemu_storage_daemon() {
    let mut differences = Vec::new();
    for options in ["", ",read-only=on", ",locking=off"] {
        let answers = KINDS.map(|kind| {
            let place = Place::new();
            let disk = place.disk("d", LEN);
            place.disk("other", LEN);
            let _daemon = hold(kind, &disk, &place.path("s"), options);
            let run = |tool: &&str| {
                let line = tool.replace("DIR", place.root().to_str().unwrap());
                let mut words = line.split(' ').map(|word| word.replace('*', " "));
                let output = Command::new(words.next().unwrap()).args(words).output();
                text(&output.unwrap(), &place)
            };
            TOOLS.iter().map(run).collect::<Vec<String>>()
        });
        let [theirs, ours] = &answers;
        for (tool, (theirs, ours)) in TOOLS.iter().zip(theirs.iter().zip(ours)) {
            if theirs != ours {
                differences.push(format!("{options} {tool}\n QSD: {theirs}\nours: {ours}"));
            }
        }
        let refusals = ours.iter().filter(|a| a.contains("Failed to get")).count();
        println!(
            "{options:?}: {refusals} of {} tools are refused",
            ours.len()
        );
        assert_eq!(refusals > 0, options.is_empty(), "{}", ours.join("\n"));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_second_daemon_is_refused_or_not_as_qemu_storage_daemon_is() {
    let mut differences = Vec::new();
    let all = [
        "",
        ",read-only=on",
        ",locking=off",
        ",read-only=on,force-share=on",
    ];
    for held in all {
        for wanted in all {
            // QSD beside QSD says what is right; ours beside ours and each beside the other must say the same.
            let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)];
            let answers = pairs.map(|(first, second)| {
                let place = Place::new();
                let disk = place.disk("d", LEN);
                let _daemon = hold(KINDS[first], &disk, &place.path("s"), held);
                second_answer(KINDS[second], &disk, &place, wanted)
            });
            for (pair, answer) in pairs.iter().zip(&answers) {
                if answer != &answers[0] {
                    differences.push(format!(
                        "{held} then {wanted}, {pair:?}\n{}\n{answer}",
                        answers[0]
                    ));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// What becomes of a second daemon: it serves, or it ends with a message.
fn second_answer(kind: Kind, disk: &Path, place: &Place, options: &str) -> String {
    let mut line = arguments(disk, &place.path("t"), options);
    // Ends by itself once all commands are executed, on both daemons with the same message.
    line.extend(["--pidfile".into(), "/nonexistent/p".into()]);
    let (status, said) = Start::new(line).kind(kind).run();
    let said = said.replace(place.root().to_str().unwrap(), "DIR");
    format!(
        "{:?} {}",
        status.code(),
        said.replace("qemu-storage-daemon", "virtioblkd")
    )
}
