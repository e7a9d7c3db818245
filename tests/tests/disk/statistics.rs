//! What an export counts: each request once, by kind, with its bytes and its time, whoever asks for it and however it ends.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use backend::stats::{Counted, Figures, HistogramOptions, Sum};
use blockgraph::driver::null::Reads;
use blockgraph::filter::blkdebug::{BlkdebugEvent, InjectError, IoType, Options};
use blockgraph::graph::open::{Child, DriverSpec, FilterSpec, NodeSpec, NullKind, NullSpec};
use blockgraph::graph::{Common, DiscardPolicy};
use ring::Choice;
use tests::client::blk::kind;
use tests::client::thread::{Desk, desk};

const DISK_BYTES: u64 = 1 << 20;
const SECTORS: u64 = DISK_BYTES / 512;

fn node(driver: DriverSpec) -> NodeSpec {
    NodeSpec {
        name: None,
        common: Common {
            discard: DiscardPolicy::Unmap,
            ..Common::default()
        },
        driver,
    }
}

fn null(latency_ns: u64) -> NodeSpec {
    node(DriverSpec::Null(NullSpec {
        kind: NullKind::Co,
        size_bytes: DISK_BYTES,
        reads: Reads::Zeroes,
        latency_ns,
    }))
}

/// A disk whose writes fail from sector 8 on for one sector.
fn failing() -> NodeSpec {
    let rule = InjectError {
        event: BlkdebugEvent::None,
        state: 0,
        io_type: Some(IoType::Write),
        errno: libc::EIO,
        sector: Some(8),
        once: false,
        immediately: false,
    };
    node(DriverSpec::Filter(Box::new(FilterSpec::Blkdebug {
        image: Child::Inline(Box::new(null(0))),
        config: None,
        options: Options {
            inject_error: vec![rule],
            ..Options::default()
        },
    })))
}

/// One segment of a discard or write-zeroes, offered in place `slot`.
fn offer_segment(desk: &mut Desk, slot: u64, kind: u32, sector: u64, sectors: u32) {
    let at = tests::client::memory::HIGH + slot * tests::client::thread::SLOT_BYTES;
    let mut segment = [0; 16];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&sectors.to_le_bytes());
    desk.memory.write(at, &segment);
    desk.offer(slot, kind, 0, 16);
}

fn figures(desk: &Desk) -> Figures {
    desk.disk.stats.figures()
}

/// Publishing comes just after the guest is told: this waits for it, and fails where it never comes.
fn until(desk: &Desk, what: &str, is: impl Fn(&Figures) -> bool) -> Figures {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let now = figures(desk);
        if is(&now) {
            return now;
        }
        assert!(Instant::now() < end, "{what}: {now:?}");
        std::thread::yield_now();
    }
}

fn stopped(desk: &Desk) -> Figures {
    desk.crew.stop(0).unwrap();
    figures(desk)
}

fn counts(sum: &Sum) -> [u64; 4] {
    [sum.operations, sum.bytes, sum.failed, sum.invalid]
}

#[test]
fn every_request_is_counted_once_by_its_kind_and_its_end() {
    let mut desk = desk(Choice::Threads, failing());
    desk.start();
    assert_eq!(figures(&desk), Figures::default());
    for slot in 0..3 {
        desk.offer(slot, kind::IN, slot, 4096);
    }
    desk.offer(3, kind::IN, SECTORS - 1, 1024);
    desk.offer(4, kind::IN, 0, 100);
    desk.offer(5, kind::OUT, 100, 512);
    desk.offer(6, kind::OUT, 8, 512);
    desk.offer(7, kind::OUT, SECTORS, 512);
    desk.offer(8, kind::FLUSH, 0, 0);
    desk.offer(9, kind::FLUSH, 0, 0);
    desk.offer(10, kind::GET_ID, 0, 0);
    desk.offer(11, kind::SCSI_CMD, 0, 0);
    offer_segment(&mut desk, 12, kind::DISCARD, 16, 24);
    offer_segment(&mut desk, 13, kind::DISCARD, SECTORS, 24);
    offer_segment(&mut desk, 14, kind::WRITE_ZEROES, 64, 96);
    offer_segment(&mut desk, 15, kind::WRITE_ZEROES, SECTORS, 1);
    desk.finish(16);
    let figures = stopped(&desk);
    assert_eq!(counts(figures.of(Counted::Read)), [3, 3 * 4096, 0, 2]);
    let written = 512 + 96 * 512;
    assert_eq!(counts(figures.of(Counted::Write)), [2, written, 1, 2]);
    assert_eq!(counts(figures.of(Counted::Flush)), [2, 0, 0, 0]);
    assert_eq!(counts(figures.of(Counted::Unmap)), [1, 24 * 512, 0, 1]);
    assert_eq!(figures.written_end_bytes, (64 + 96) * 512);
    assert_eq!(figures.in_flight, 0);
    assert!(figures.idle_ns.is_some());
}

#[test]
fn a_ring_that_is_started_again_counts_on() {
    let mut desk = desk(Choice::Threads, null(0));
    desk.start();
    desk.offer(0, kind::IN, 0, 512);
    desk.finish(1);
    let stop = desk.crew.stop(0).unwrap();
    assert_eq!(figures(&desk).of(Counted::Read).operations, 1);
    desk.start_at(stop.next_avail);
    desk.offer(0, kind::IN, 0, 512);
    desk.finish(1);
    assert_eq!(stopped(&desk).of(Counted::Read).operations, 2);
}

#[test]
fn time_is_what_the_disk_took_and_histograms_say_the_same() {
    const LATENCY_NS: u64 = 30_000_000;
    let mut desk = desk(Choice::Threads, null(LATENCY_NS));
    desk.start();
    let all = HistogramOptions {
        all: Some(vec![LATENCY_NS, u64::MAX]),
        ..HistogramOptions::default()
    };
    desk.disk.stats.set_histograms(&all).unwrap();
    let begun = Instant::now();
    for slot in 0..4 {
        desk.offer(slot, kind::IN, slot, 512);
    }
    desk.ring.submit();
    let busy = until(&desk, "in flight", |now| now.in_flight == 4);
    assert_eq!(busy.of(Counted::Read).operations, 0);
    desk.finish(4);
    let took_ns = begun.elapsed().as_nanos() as u64;
    let figures = stopped(&desk);
    let time_ns = figures.of(Counted::Read).time_ns;
    assert!(time_ns >= 4 * LATENCY_NS, "{time_ns} ns");
    assert!(time_ns <= 4 * took_ns, "{time_ns} ns of {took_ns}");
    let [read, write, ..] = figures.histograms;
    assert_eq!(read.unwrap().bins, [0, 4, 0]);
    assert_eq!(write.unwrap().bins, [0, 0, 0]);
    assert!(figures.idle_ns.unwrap() <= begun.elapsed().as_nanos() as u64);
}
