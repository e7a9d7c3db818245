//! fio's io_uring engine on the same file: the limit of what a backend can do.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::load::{Direction, Load, Order};
use super::process::taskset;
use super::report::Sample;

/// Runs a load on `file` from some processors.
pub fn run(file: &Path, load: Load, cpus: &[usize], duration: Duration) -> io::Result<Sample> {
    let rw = match (load.order, load.direction) {
        (Order::Random, Direction::Read) => "randread",
        (Order::Random, Direction::Write) => "randwrite",
        (Order::Sequential, Direction::Read) => "read",
        (Order::Sequential, Direction::Write) => "write",
        (Order::Once, _) => return Err(io::ErrorKind::Unsupported.into()),
    };
    let pin = taskset(cpus);
    let output = Command::new(&pin[0])
        .args(&pin[1..])
        .args([
            "fio",
            "--name=limit",
            "--ioengine=io_uring",
            "--direct=1",
            "--output-format=json",
        ])
        .args([
            "--time_based",
            "--thread",
            "--norandommap",
            "--randrepeat=0",
        ])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--rw={rw}"))
        .arg(format!("--bs={}", load.block_bytes))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--size={}", load.disk_bytes))
        .arg(format!("--runtime={}ms", duration.as_millis()))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json: Value = serde_json::from_str(&text).map_err(io::Error::other)?;
    let job = &json["jobs"][0];
    let side = if load.direction == Direction::Read {
        &job["read"]
    } else {
        &job["write"]
    };
    let requests = side["total_ios"].as_f64().unwrap_or(0.0);
    let cpu_percent =
        job["usr_cpu"].as_f64().unwrap_or(0.0) + job["sys_cpu"].as_f64().unwrap_or(0.0);
    let runtime_ms = side["runtime"].as_f64().unwrap_or(0.0);
    let percentile = |p: &str| side["clat_ns"]["percentile"][p].as_f64().unwrap_or(0.0) / 1000.0;
    Ok(Sample {
        iops: side["iops"].as_f64().unwrap_or(0.0),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        cpu_ns: cpu_percent / 100.0 * runtime_ms * 1e6 / requests.max(1.0),
        notifications: None,
    })
}
