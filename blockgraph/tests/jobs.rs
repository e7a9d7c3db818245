//! The copy engine of jobs beside whoever steers it: what it copies, how much of it is under way, and that it rests, ends and
//! fails as it is told.

#[path = "jobs/mirrors.rs"]
mod mirrors;
mod support;

use blockgraph::driver::file::Cache;
use blockgraph::driver::null::{Null, Reads};
use blockgraph::graph::{Body, Common, NewNode, Shape};
use blockgraph::io::Io;
use blockgraph::job::copy::{
    Bounds, Copier, CopyError, CopyPlan, Counts, ErrorPolicy, Ignored, Look, Parts, Select,
    Transfer, Walked, What, WorkSet, Writing, Zeroes,
};
use blockgraph::job::{
    Cancel, ErrorAction, Failure, OnError, Operation, Progress, Steer, Word, Worker,
};
use blockgraph::node::Local;
use blockgraph::pin::Epochs;
use blockgraph::{Current, Mode, NodeId, Span, Unmap};
use ring::{Choice, Errno};
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{Bench, Chance, modes, span};

const MIB: u64 = 1 << 20;

/// A worker, and what steers it.
fn worker(current: &Arc<Current>, mode: Mode, steer: &Arc<Steer>) -> Worker {
    let epochs = Arc::new(Epochs::default());
    let made = Worker::in_mode(
        current.clone(),
        epochs,
        Choice::Threads,
        mode,
        steer.clone(),
    );
    made.expect("a worker")
}

fn plan(parts: Rc<dyn Parts>, nodes: &[NodeId], work: Arc<WorkSet>, on: OnError) -> CopyPlan {
    CopyPlan {
        parts,
        nodes: nodes.to_vec(),
        work,
        bounds: Bounds::default(),
        errors: ErrorPolicy::both(on, Ignored::Retried),
        counts: Counts::Steps,
    }
}

/// A sparse file with data in some places, some of it zeroes that are stored.
fn sparse(dir: &Path, size: u64, chance: &mut Chance) -> PathBuf {
    use std::os::unix::fs::FileExt;
    let path = support::image(dir, size);
    let file = std::fs::File::options().write(true).open(&path);
    let file = file.expect("opened");
    for _ in 0..20 {
        let at = chance.below(size - 1000) & !511;
        let len = chance.below(300_000).min(size - at) as usize;
        let byte = [0, 0x11, 0x77][chance.below(3) as usize];
        file.write_all_at(&vec![byte; len], at).expect("written");
    }
    path
}

#[test]
fn a_sparse_disk_is_copied_whole_and_stays_sparse_in_every_mode() {
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut chance = Chance(seed);
    for mode in modes(seed) {
        let dir = tempfile::tempdir().expect("a directory");
        let size = 24 * MIB + 512;
        let from = sparse(dir.path(), size, &mut chance);
        let to = dir.path().join("target.raw");
        let target = std::fs::File::create(&to).expect("created");
        target.set_len(size).expect("sized");
        let mut bench = Bench::new(Choice::Threads, mode);
        let source = bench.open(support::file(&from, Cache::Page));
        let target = bench.open(support::file(&to, Cache::Page));
        let steer = Arc::<Steer>::default();
        let mut worker = worker(&bench.current, mode, &steer);
        let progress = Progress::default();
        progress.set_remaining(size);
        let transfer = Transfer {
            source,
            target,
            select: Select::All,
            zeroes: Zeroes::Detect(Unmap::Allow),
            writing: Writing::Plain,
        };
        let work = Arc::new(WorkSet::full(size, 1 << 16));
        let plan = plan(
            Rc::new(transfer),
            &[source, target],
            work.clone(),
            OnError::Report,
        );
        let words = RefCell::new(Vec::new());
        let tell = |word| words.borrow_mut().push(word);
        let walked = Copier::new(&mut worker, plan, &progress, &tell).run();
        assert_eq!(walked.expect("copied"), Walked::All);
        assert!(work.is_empty() && words.borrow().is_empty());
        assert_eq!((progress.current(), progress.total()), (size, size));
        let (source, target) = (std::fs::read(&from), std::fs::read(&to));
        assert!(source.expect("read") == target.expect("read"), "{mode:?}");
        let blocks = |path: &Path| {
            use std::os::unix::fs::MetadataExt;
            path.metadata().expect("there").blocks()
        };
        assert!(blocks(&to) <= blocks(&from), "zeroes take no room");
    }
}

/// Parts of a test's own: what is to be copied, and what becomes of it.
#[derive(Debug, Default)]
struct Own {
    /// Nothing of what is beyond is to be copied.
    data_below: u64,
    /// Copies that are under way, and the most there were of them, in number and bytes.
    under_way: Cell<(usize, u64)>,
    most: Cell<(usize, u64)>,
    /// Copies that have begun, and ended, for other threads.
    begun: Arc<AtomicU64>,
    ended: Arc<AtomicU64>,
    /// What was copied, in the order of ends.
    copied: RefCell<Vec<Span>>,
    /// Copies of this range fail so often.
    failing: Cell<u32>,
    failing_at: u64,
    failure: Option<Failure>,
    /// Told after so many copies.
    after: Option<After>,
}

/// After how many copies who is told what.
type After = (usize, Arc<Steer>, fn(&Steer));

impl Parts for Own {
    fn look<'a>(&'a self, _io: &'a Io, span: Span) -> Local<'a, Result<Look, Failure>> {
        let data = span.at < self.data_below;
        let left = self.data_below.saturating_sub(span.at);
        let (what, len) = match data {
            true => (What::Data, left.min(span.len)),
            false => (What::Skip, span.len),
        };
        Box::pin(async move { Ok(Look { what, len }) })
    }

    fn copy<'a>(&'a self, io: &'a Io, span: Span) -> Local<'a, Result<(), Failure>> {
        let (count, bytes) = self.under_way.get();
        let now = (count + 1, bytes + span.len);
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.under_way.set(now);
        let most = self.most.get();
        self.most.set((most.0.max(now.0), most.1.max(now.1)));
        Box::pin(async move {
            io.sleep(1_000_000).await;
            self.ended.fetch_add(1, Ordering::SeqCst);
            let (count, bytes) = self.under_way.get();
            self.under_way.set((count - 1, bytes - span.len));
            if let Some(failure) = self.failure
                && span.at == self.failing_at
                && self.failing.get() > 0
            {
                self.failing.set(self.failing.get() - 1);
                return Err(failure);
            }
            self.copied.borrow_mut().push(span);
            if let Some((count, steer, what)) = &self.after
                && self.copied.borrow().len() == *count
            {
                what(steer);
            }
            Ok(())
        })
    }
}

/// A graph with one node to work on.
fn one_node() -> (Arc<Current>, NodeId) {
    let current = Arc::<Current>::default();
    let mut graph = current.get().kept();
    let node = graph.insert(NewNode {
        name: "disk".to_owned(),
        kind: "null-co",
        common: Common::default(),
        body: Body::Driver(Arc::new(Null::new(1 << 40, Reads::Zeroes, 0))),
        shape: Shape::Leaf,
        files: Vec::new(),
    });
    current.publish(graph);
    (current, node)
}

/// Runs such parts over a disk of that size.
fn run_own(
    own: Own,
    size: u64,
    on: OnError,
    ignored: Ignored,
    steer: &Arc<Steer>,
) -> (Rc<Own>, Result<Walked, CopyError>, Vec<Word>, u64) {
    let (current, node) = one_node();
    let mut worker = worker(&current, Mode::Fast, steer);
    let own = Rc::new(own);
    let progress = Progress::default();
    progress.set_remaining(size);
    let work = Arc::new(WorkSet::full(size, 1 << 16));
    let mut plan = plan(own.clone(), &[node], work, on);
    plan.errors.ignored = ignored;
    let words = RefCell::new(Vec::new());
    let tell = |word| {
        words.borrow_mut().push(word);
        // Whoever hears that it rests has it go on.
        if word == Word::Paused {
            steer.change(|wish| wish.pause = false);
        }
    };
    let walked = Copier::new(&mut worker, plan, &progress, &tell).run();
    (own, walked, words.into_inner(), progress.current())
}

#[test]
fn what_is_under_way_is_bounded_and_what_need_not_be_copied_is_passed_over_at_once() {
    let steer = Arc::<Steer>::default();
    let own = Own {
        data_below: 100 * MIB,
        ..Own::default()
    };
    // A pebibyte of nothing would take days if it were looked at by the mebibyte.
    let size = 1 << 50;
    let (own, walked, words, done) = run_own(own, size, OnError::Report, Ignored::Retried, &steer);
    assert_eq!(walked.expect("done"), Walked::All);
    assert_eq!((words.len(), done), (0, size));
    let mut copied = own.copied.take();
    copied.sort_by_key(|span| span.at);
    let end = copied.iter().fold(0, |at, span| {
        assert_eq!(span.at, at, "once, and without a gap");
        span.end()
    });
    // The units of so large a disk are larger than a chunk.
    assert!((100 * MIB..100 * MIB + (1 << 23)).contains(&end), "{end}");
    let (count, bytes) = own.most.get();
    assert!(count > 1 && bytes <= 16 * MIB, "{count} {bytes}");
}

#[test]
fn a_job_that_is_to_rest_lets_end_what_is_under_way_and_goes_on_when_told() {
    let steer = Arc::<Steer>::default();
    let own = Own {
        data_below: 50 * MIB,
        after: Some((3, steer.clone(), |steer| {
            steer.change(|wish| wish.pause = true)
        })),
        ..Own::default()
    };
    let size = 50 * MIB;
    let (own, walked, words, done) = run_own(own, size, OnError::Report, Ignored::Retried, &steer);
    assert_eq!(walked.expect("done"), Walked::All);
    assert_eq!(words, [Word::Paused, Word::Resumed]);
    assert_eq!((done, own.copied.borrow().len()), (size, 50));
}

#[test]
fn a_cancelled_job_copies_no_more_than_was_under_way() {
    for cancel in [Cancel::Soft, Cancel::Force] {
        let steer = Arc::<Steer>::default();
        let what: fn(&Steer) = match cancel {
            Cancel::Soft => |steer| steer.change(|wish| wish.cancel = Some(Cancel::Soft)),
            Cancel::Force => |steer| steer.change(|wish| wish.cancel = Some(Cancel::Force)),
        };
        let own = Own {
            data_below: 1000 * MIB,
            after: Some((5, steer.clone(), what)),
            ..Own::default()
        };
        let ran = run_own(own, 1000 * MIB, OnError::Report, Ignored::Retried, &steer);
        let (own, walked, words, done) = ran;
        assert_eq!(walked.expect("ended"), Walked::Cancelled(cancel));
        let copied = own.copied.borrow().len() as u64;
        assert!((5..=5 + 16 + 16).contains(&copied), "{copied}");
        assert_eq!((done, words.len()), (copied * MIB, 0));
        assert_eq!(own.under_way.get(), (0, 0));
    }
}

#[test]
fn failures_are_reported_ignored_or_stopped_at_as_the_policy_says() {
    let size = 40 * MIB;
    let failing = |times: u32, errno: Errno| Own {
        data_below: size,
        failing: Cell::new(times),
        failing_at: 7 * MIB,
        failure: Some(Failure::write(errno)),
        ..Own::default()
    };
    let said = |action, errno| Word::Failed {
        operation: Operation::Write,
        action,
        errno,
    };
    let full = Errno(libc::ENOSPC);
    let steer = Arc::<Steer>::default();
    let run = |own, on, ignored| run_own(own, size, on, ignored, &steer);

    let (own, walked, words, done) = run(failing(9, Errno::IO), OnError::Enospc, Ignored::Retried);
    assert_eq!(
        walked.expect_err("failed").to_string(),
        "Input/output error"
    );
    assert_eq!(words, [said(ErrorAction::Report, Errno::IO)]);
    assert!(done < size && own.under_way.get() == (0, 0));

    let (_, walked, words, done) = run(failing(2, full), OnError::Enospc, Ignored::Retried);
    assert_eq!(walked.expect("copied in the end"), Walked::All);
    let stop = [said(ErrorAction::Stop, full), Word::Paused, Word::Resumed];
    assert_eq!(words, [stop, stop].concat());
    assert_eq!(done, size);

    let (own, walked, words, done) = run(failing(1, full), OnError::Ignore, Ignored::LeftOut);
    let why = walked.expect_err("at its end").to_string();
    assert_eq!(why, "No space left on device");
    assert_eq!(words, [said(ErrorAction::Ignore, full)]);
    assert_eq!((done, own.copied.borrow().len()), (size, 39));

    let (own, walked, words, done) = run(failing(2, full), OnError::Ignore, Ignored::Retried);
    assert_eq!(walked.expect("copied in the end"), Walked::All);
    assert_eq!(words, vec![said(ErrorAction::Ignore, full); 2]);
    assert_eq!((done, own.copied.borrow().len()), (size, 40));
}

#[test]
fn what_comes_into_the_set_meanwhile_is_copied_too() {
    let (current, node) = one_node();
    let steer = Arc::<Steer>::default();
    let mut worker = worker(&current, Mode::Fast, &steer);
    let work = Arc::new(WorkSet::new(64 * MIB, 1 << 16));
    let own = Rc::new(Own {
        data_below: 64 * MIB,
        ..Own::default()
    });
    let progress = Progress::default();
    let plan = plan(own.clone(), &[node], work.clone(), OnError::Report);
    let tell = |_| {};
    let mut copier = Copier::new(&mut worker, plan, &progress, &tell);
    assert_eq!(copier.run().expect("nothing to do"), Walked::All);
    let writer = std::thread::spawn(move || {
        for at in [3, 60, 0, 31] {
            work.add(span(at * MIB + 5000, 100));
            std::thread::yield_now();
        }
        steer.change(|wish| wish.complete = true);
    });
    while !copier.worker().steer().wish().complete {
        copier.wait_for_work().expect("woken");
        copier.run().expect("copied");
    }
    writer.join().expect("no panic");
    copier.run().expect("copied");
    let mut copied: Vec<u64> = own.copied.borrow().iter().map(|span| span.at).collect();
    copied.sort_unstable();
    assert_eq!(copied, [0, 3 * MIB, 31 * MIB, 60 * MIB]);
}

#[test]
fn a_change_of_the_graph_waits_for_copies_under_way_and_no_longer() {
    use blockgraph::graph::Control;
    use blockgraph::graph::pause::Quiet;
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};
    let (current, node) = one_node();
    let steer = Arc::<Steer>::default();
    let (told, stopped) = (current.clone(), steer.clone());
    let (begun, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let counts = (begun.clone(), ended.clone());
    let job = std::thread::spawn(move || {
        let mut worker = worker(&told, Mode::Fast, &stopped);
        let own = Rc::new(Own {
            data_below: 1 << 40,
            begun: counts.0,
            ended: counts.1,
            ..Own::default()
        });
        let progress = Progress::default();
        let work = Arc::new(WorkSet::full(1 << 40, 1 << 16));
        let plan = plan(own.clone(), &[node], work, OnError::Report);
        let walked = Copier::new(&mut worker, plan, &progress, &|_| {}).run();
        assert_eq!(walked.expect("ended"), Walked::Cancelled(Cancel::Force));
        assert_eq!(own.under_way.get(), (0, 0));
    });
    let epochs = Arc::new(Epochs::default());
    let mut control = Control::new(current.clone(), epochs, Choice::Threads).expect("a control");
    for _ in 0..20 {
        let deadline = Instant::now() + Duration::from_secs(10);
        let quiet = Quiet::begin(&current, &BTreeSet::from([node]), &mut control, deadline);
        let quiet = quiet.expect("copies end, and none begins");
        let before = begun.load(Ordering::SeqCst);
        assert_eq!(ended.load(Ordering::SeqCst), before);
        std::thread::yield_now();
        assert_eq!(begun.load(Ordering::SeqCst), before);
        drop(quiet);
        while begun.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
    }
    steer.change(|wish| wish.cancel = Some(Cancel::Force));
    job.join().expect("no panic");
}

/// A transaction holds its nodes over all of its changes, each of which holds some of them itself.
#[test]
fn what_is_held_stays_held_when_a_change_within_ends() {
    use blockgraph::graph::Control;
    use blockgraph::graph::pause::Quiet;
    use blockgraph::{Kind, Lane, Started};
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};
    let (current, node) = one_node();
    let epochs = Arc::new(Epochs::default());
    let control = Control::new(current.clone(), epochs.clone(), Choice::Threads);
    let mut control = control.expect("a control");
    let nodes = BTreeSet::from([node]);
    let deadline = Instant::now() + Duration::from_secs(10);
    let outer = Quiet::begin(&current, &nodes, &mut control, deadline).expect("nobody is there");
    let inner = Quiet::begin(&current, &nodes, &mut control, deadline).expect("nor is now");
    drop(inner);
    let ring = ring::Ring::new(Choice::Threads).expect("a ring");
    let mut lane = Lane::new(ring, current.clone(), epochs, Mode::Fast);
    let mut flush = |token| {
        lane.begin_batch();
        let started = lane.start(node, Kind::Flush, Span { at: 0, len: 0 }, &[], token);
        lane.end_batch();
        started
    };
    assert_eq!(flush(1), Started::Held);
    drop(outer);
    assert_ne!(flush(2), Started::Held);
}
