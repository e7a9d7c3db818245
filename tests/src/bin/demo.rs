//! `ci/demo`: a Linux guest on a disk served by virtioblkd, fio in it, and what came of it in a short table.
//!
//! The rule to know: it fails loudly. A row says "ok" only after the check behind it was made, and any failure is the exit code.

use serde_json::Value;
use std::error::Error;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tests::daemon::{Daemon, Disk, Kind};
use tests::disk_file::DiskFile;
use tests::guest::{Guest, GuestSpec, QUEUES};

const MIB: u64 = 1 << 20;
const LEN_BYTES: u64 = 256 * MIB;
const RUN_SECONDS: u32 = 5;
const SEED: u64 = 0xd15c;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Rows of a name and what was found.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<(&'static str, String)>,
}

impl Table {
    fn row(&mut self, name: &'static str, found: impl Into<String>) {
        self.rows.push((name, found.into()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(name, _)| name.len()).max();
        let width = width.unwrap_or_default();
        for (name, found) in &self.rows {
            writeln!(f, "  {name:<width$}  {found}")?;
        }
        Ok(())
    }
}

/// One direction of one fio run.
#[derive(Debug)]
struct Measured {
    iops: f64,
    requests: u64,
    bytes: u64,
    p50: Duration,
    p99: Duration,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured { iops, p50, p99, .. } = self;
        let mib = self.bytes / MIB;
        write!(
            f,
            "{iops:>8.0} IOPS, {mib} MiB, p50 {p50:.0?}, p99 {p99:.0?}"
        )
    }
}

fn main() -> ExitCode {
    let start = Instant::now();
    let mut table = Table::default();
    let outcome = run(&mut table);
    let took = start.elapsed().as_secs();
    let mut out = std::io::stdout().lock();
    let verdict = match &outcome {
        Ok(()) => format!("everything above was checked; {took} s"),
        Err(error) => format!("FAILED after {took} s: {error}"),
    };
    // Nobody is left to tell when the standard output is closed; the exit code still says it.
    let _ = writeln!(out, "\n{table}\n{verdict}");
    if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(table: &mut Table) -> Outcome<()> {
    let kind = Kind::from_env();
    let file = DiskFile::sparse(LEN_BYTES)?;
    let daemon = Daemon::serve_file(kind, &Disk::new(file.path()))?;
    let serving = format!(
        "{} MiB raw file, {QUEUES} queues, by {}",
        LEN_BYTES / MIB,
        kind.name()
    );
    table.row("disk", serving);

    let booting = Instant::now();
    let mut guest = Guest::boot(&GuestSpec::new().disk(daemon.socket(0)))?;
    let kernel = guest.check("uname -sr; ls /sys/block/vda/mq | wc -l")?;
    let (kernel, queues) = kernel.split_once('\n').ok_or("the guest named no kernel")?;
    let boot = format!(
        "{kernel} in {:.1?} on {}",
        booting.elapsed(),
        guest.accel().name()
    );
    table.row("guest", boot);
    if queues.trim() != QUEUES.to_string() {
        return Err(format!("the guest uses {queues} queues, not {QUEUES}").into());
    }

    measure(&mut guest, &daemon, table)?;
    verify(&mut guest, table)?;
    compare(&mut guest, &file, table)?;

    let cpu = daemon.cpu_time()?;
    table.row("daemon's CPU", format!("{cpu:.2?} in all"));
    guest.power_off()?;
    daemon.stop()?;
    table.row("end", "guest off, daemon ended with 0 on SIGTERM");
    Ok(())
}

/// 4 KiB requests for a few seconds each way.
fn measure(guest: &mut Guest, daemon: &Daemon, table: &mut Table) -> Outcome<()> {
    for (name, rw, side) in [
        ("random write 4k", "randwrite", "write"),
        ("random read 4k", "randread", "read"),
    ] {
        let before = daemon.cpu_time()?;
        let job = format!("--rw={rw} --bs=4k --time_based --runtime={RUN_SECONDS}");
        let measured = direction(&fio(guest, &job)?, side)?;
        let cpu = daemon.cpu_time()? - before;
        if measured.requests == 0 {
            return Err(format!("fio did no {rw} request").into());
        }
        let each = cpu.as_secs_f64() * 1e6 / measured.requests as f64;
        table.row(name, format!("{measured}, daemon {each:.1} us CPU each"));
    }
    Ok(())
}

/// Writes the disk over in sizes from 512 B to 1 MiB and has fio read it all back.
fn verify(guest: &mut Guest, table: &mut Table) -> Outcome<()> {
    let sizes = "512/25:4k/25:7680/10:64k/20:100k/10:256k/5:1M/5";
    let job = format!(
        "--rw=randwrite --bssplit={sizes} --blockalign=512 --randseed={SEED} \
         --verify=crc32c --do_verify=1 --verify_fatal=1"
    );
    let report = fio(guest, &job)?;
    let (written, read) = (direction(&report, "write")?, direction(&report, "read")?);
    if written.bytes == 0 || written.bytes != read.bytes {
        let (written, read) = (written.bytes, read.bytes);
        return Err(format!("fio wrote {written} bytes and verified {read}").into());
    }
    let (mib, requests) = (written.bytes / MIB, written.requests);
    let found =
        format!("ok: {mib} MiB in {requests} requests of 512 B to 1 MiB, each read back (crc32c)");
    table.row("verify", found);
    Ok(())
}

fn compare(guest: &mut Guest, file: &DiskFile, table: &mut Table) -> Outcome<()> {
    let seen = guest.check("sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda")?;
    let here = file.sha256(0, LEN_BYTES)?;
    if !seen.starts_with(&here) {
        return Err(format!("the guest reads {seen}, the host's file is {here}").into());
    }
    if file.is_zero(0, LEN_BYTES)? {
        return Err("the host's file is all zeroes".into());
    }
    let found =
        format!("ok: all {LEN_BYTES} bytes the same in the guest and in the host's file (sha256)");
    table.row("host's file", found);
    Ok(())
}

/// Runs fio on the four quarters of the disk, one job each at depth 32; gives its report as JSON.
fn fio(guest: &mut Guest, job: &str) -> Outcome<Value> {
    let quarter = LEN_BYTES / u64::from(QUEUES);
    let text = guest.check(&format!(
        "fio --name=demo --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=32 \
         --numjobs={QUEUES} --size={quarter} --offset_increment={quarter} \
         --group_reporting --eta=never --output-format=json {job}"
    ))?;
    // fio may put notes before its report.
    let report = text.find('{').map_or("", |start| &text[start..]);
    Ok(serde_json::from_str(report)?)
}

fn direction(report: &Value, side: &str) -> Outcome<Measured> {
    let side = &report["jobs"][0][side];
    let number = |value: &Value| value.as_u64().ok_or("a number is missing in fio's report");
    let percentile = |name: &str| {
        let nanoseconds = side["clat_ns"]["percentile"][name].as_u64();
        Duration::from_nanos(nanoseconds.unwrap_or_default())
    };
    Ok(Measured {
        iops: side["iops"].as_f64().ok_or("fio reported no IOPS")?,
        requests: number(&side["total_ios"])?,
        bytes: number(&side["io_bytes"])?,
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
    })
}
