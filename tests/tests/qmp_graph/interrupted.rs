//! Jobs that are paused, resumed and cancelled anywhere: stories as those of `jobs.rs`, made of a seed.
//!
//! The rule: an order is given only where both daemons are sure to be in the same state, so that what it comes to is no matter of
//! time; how far the job is then, is.

use super::jobs::{Story, compare};
use serde_json::{Value, json};

const SEEDS: u64 = 24;
const JOB: &str = "j";

/// Marsaglia's xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

fn command(name: &str, arguments: Value) -> Value {
    json!({"execute": name, "arguments": arguments})
}

fn await_status(status: &str) -> Value {
    json!({"await": {"event": "JOB_STATUS_CHANGE", "status": status, "id": JOB}})
}

/// The verbs of all jobs, or the older ones of block jobs.
fn verb(chance: &mut Chance, name: &str) -> Value {
    match chance.below(2) {
        0 => command(&format!("job-{name}"), json!({"id": JOB})),
        _ => command(&format!("block-job-{name}"), json!({"device": JOB})),
    }
}

fn set_speed(speed: u64) -> Value {
    let arguments = json!({"device": JOB, "speed": speed});
    command("block-job-set-speed", arguments)
}

/// How a job begins: its command, and how much it does at least.
fn beginning(chance: &mut Chance) -> (Value, u64, bool) {
    let speed = 65536 * (1 + chance.below(4));
    let (name, mut arguments, bytes, is_active) = match chance.below(4) {
        0 => ("block-stream", json!({"device": "n2"}), 4 << 20, false),
        1 => {
            let part = json!({"device": "n2", "top-node": "n1"});
            ("block-commit", part, 2 << 20, false)
        }
        2 => {
            let top = json!({"device": "n2", "base-node": "n0"});
            ("block-commit", top, 4 << 20, true)
        }
        _ => {
            let full = json!({"device": "n2", "target": "n3", "sync": "full"});
            ("blockdev-backup", full, 6 << 20, false)
        }
    };
    arguments["job-id"] = json!(JOB);
    arguments["speed"] = json!(speed);
    arguments["auto-finalize"] = json!(chance.below(3) > 0);
    (command(name, arguments), bytes, is_active)
}

fn story(seed: u64) -> Story {
    // Never 0.
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (begin, bytes, is_active) = beginning(&mut chance);
    let is_manual = begin["arguments"]["auto-finalize"] == false;
    let mut lines = vec![begin];
    let mut offset = 0;
    for _ in 0..1 + chance.below(3) {
        offset += chance.below(bytes / 8);
        lines.push(json!({"offset": offset}));
        lines.push(verb(&mut chance, "pause"));
        lines.push(await_status("paused"));
        let mut extra = vec![
            verb(&mut chance, "pause"),
            set_speed(65536 * (1 + chance.below(8))),
            verb(&mut chance, "complete"),
        ];
        let keep = chance.below(3) as usize;
        lines.extend(extra.drain(..keep));
        if chance.below(5) == 0 {
            lines.push(cancel(&mut chance));
            lines.push(await_status("null"));
            return (head(seed, &lines), lines);
        }
        lines.push(verb(&mut chance, "resume"));
        lines.push(await_status("running"));
    }
    match chance.below(2) {
        0 => {
            let further = offset + chance.below(bytes / 8);
            lines.push(json!({"offset": further}));
            lines.push(cancel(&mut chance));
        }
        _ => {
            lines.push(set_speed(0));
            if is_active {
                lines.push(json!({"await": {"event": "BLOCK_JOB_READY"}}));
                lines.push(verb(&mut chance, "complete"));
            }
            if is_manual {
                lines.push(json!({"await": {"event": "BLOCK_JOB_PENDING"}}));
                let last = chance.one_of(&["job-finalize", "job-cancel"]);
                lines.push(command(last, json!({"id": JOB})));
            }
        }
    }
    lines.push(await_status("null"));
    (head(seed, &lines), lines)
}

fn cancel(chance: &mut Chance) -> Value {
    match chance.below(2) {
        0 => command("job-cancel", json!({"id": JOB})),
        _ => {
            let force = json!({"device": JOB, "force": true});
            command("block-job-cancel", force)
        }
    }
}

fn head(seed: u64, lines: &[Value]) -> Value {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let mut head = json!({
        "story": format!("seed {seed}: {}", lines.join("\n    ")), "images": 3, "timing": "any",
    });
    if lines[0].contains("backup") {
        head["images"] = json!(4);
        head["on"] = json!({"3": null});
        // The target is the last image, and only what was copied whole is the same.
        if lines.iter().any(|line| line.contains("cancel")) {
            head["compare-images"] = json!(false);
        }
    }
    head
}

#[test]
fn jobs_that_are_paused_and_cancelled_anywhere_tell_what_qemu_storage_daemons_do() {
    println!("seeds 0 to {SEEDS}");
    let stories: Vec<Story> = (0..SEEDS).map(story).collect();
    let lines = |what: &str| {
        let is = |line: &&Value| line.to_string().contains(what);
        stories
            .iter()
            .flat_map(|(_, lines)| lines)
            .filter(is)
            .count()
    };
    assert!(lines("cancel") > 5 && lines("resume") > 10);
    compare(&stories);
}
