//! `bench`: prints one markdown table of what requests cost, ours beside qemu-storage-daemon's and fio's.
//!
//! `--quick` measures less, `--only NAME` some rows, `--instructions` nothing but the callgrind figures, one per line.
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::io;
use std::time::Duration;

use tests::bench::instructions::REFUSE_IO_URING;
use tests::bench::process::exec_without_io_uring;
use tests::bench::rows::{Effort, filled_file, idle, machine, run_all};
use tests::bench::{instructions, jobs, median, nbd, report};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, words @ ..] = arguments.as_slice()
        && flag == REFUSE_IO_URING
    {
        return Err(exec_without_io_uring(words));
    }
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let only = arguments
        .iter()
        .skip_while(|a| *a != "--only")
        .nth(1)
        .cloned()
        .unwrap_or_default();
    let effort = if has("--quick") {
        Effort {
            rounds: 3,
            round: Duration::from_millis(300),
            file_bytes: 256 << 20,
            only,
        }
    } else {
        Effort {
            rounds: 7,
            round: Duration::from_secs(1),
            file_bytes: 1 << 30,
            only,
        }
    };
    let dir = tempfile::tempdir()?;
    let file = filled_file(dir.path(), effort.file_bytes)?;
    if has("--instructions") {
        return instructions::each(&file, |subject, count| println!("{subject} {count:.0}"));
    }
    println!(
        "{}; {} rounds of {:?}\n\n{}",
        machine(),
        effort.rounds,
        effort.round,
        report::heading()
    );
    let mut goals = Vec::new();
    run_all(&effort, &file, |row| {
        println!("{}", report::render(row));
        goals.extend(row.goals.iter().map(|goal| goal.render(row)));
    })?;
    let nbd = nbd::run(&effort, &file)?;
    if !nbd.is_empty() {
        println!("\n{}", nbd::render(&nbd));
    }
    let jobs = jobs::run(&effort)?;
    if !jobs.is_empty() {
        println!("{}", jobs::render(&jobs));
    }
    if !goals.is_empty() {
        println!("\nGoals\n- {}", goals.join("\n- "));
    }
    if effort.only.is_empty() {
        print_idle(&effort, &file)?;
    }
    Ok(())
}

fn print_idle(effort: &Effort, file: &std::path::Path) -> io::Result<()> {
    println!(
        "\n| idle, one guest | ready after ms | RSS KiB | wake-ups/s | CPU us/s |\n|---|---|---|---|---|"
    );
    for line in idle(effort, file)? {
        let (ready, cpu) = (median(&line.ready_ms), line.cpu_ns_per_second / 1000.0);
        println!(
            "| {} | {ready:.1} | {} | {:.1} | {cpu:.0} |",
            line.name, line.rss_kib, line.wake_ups_per_second
        );
    }
    Ok(())
}
