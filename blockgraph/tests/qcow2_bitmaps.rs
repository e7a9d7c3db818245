//! Images with persistent bitmaps, made by the real qemu-img: they are in use while we may write, right when we have closed the
//! image, and say what QEMU's say; and no check finds anything.

mod support;

use blockgraph::bitmap::{BitmapAdmin, Keeping, NewBitmap, State};
use blockgraph::driver::file::Cache;
use blockgraph::driver::qcow2::check::{Repair, check};
use blockgraph::driver::qcow2::format::snapshot_table::Taken;
use blockgraph::driver::qcow2::snapshot::{NewSnapshot, SnapshotFailure};
use blockgraph::driver::qcow2::{Options, Qcow2};
use blockgraph::graph::open::Backing;
use blockgraph::graph::resize::ResizeError;
use blockgraph::graph::{self, Access, Body};
use blockgraph::io::Io;
use blockgraph::request::Prealloc;
use blockgraph::{Current, Driver, Kind, Mode, NodeId, Unmap};
use ring::{Choice, Durability, Mem};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::bitmaps::{Listed, dirty, listed};
use support::guests::{Guest, Guests};
use support::qcow2::{create, qemu_io, run, text};
use support::{Bench, modes, writes};

const SIZE: u64 = 8 << 20;
const CLUSTER: u64 = 65536;

fn bitmap(path: &Path, args: &[&str], name: &str) {
    let args = [&["bitmap"], args, &[text(path), name]].concat();
    run("qemu-img", &args);
}

/// An image with a bitmap that records and one that does not any more; both have seen a write of the second MiB.
fn with_bitmaps(path: &Path, options: &str, granularity: &str) {
    create(path, options, SIZE);
    bitmap(path, &["--add", "-g", granularity], "records");
    bitmap(path, &["--add", "-g", granularity], "frozen");
    qemu_io(path, "qcow2", &["write -P 3 1M 1M".to_owned()]);
    bitmap(path, &["--disable"], "frozen");
}

fn states(records_in_use: bool, frozen_in_use: bool) -> Vec<Listed> {
    let list = |name: &str, in_use, auto| Listed {
        name: name.to_owned(),
        in_use,
        auto,
    };
    vec![
        list("records", records_in_use, true),
        list("frozen", frozen_in_use, false),
    ]
}

fn open(path: &Path, mode: Mode) -> (Bench, NodeId) {
    let mut bench = Bench::new(Choice::Threads, mode);
    let node = bench.open(writes::image(
        path,
        None,
        Backing::Nothing,
        Options::default(),
    ));
    (bench, node)
}

fn driver(bench: &Bench, node: NodeId) -> Arc<dyn Driver> {
    match bench
        .current
        .get()
        .node(node)
        .map(|node| node.body().clone())
    {
        Some(Body::Driver(driver)) => driver,
        _ => panic!("a driver"),
    }
}

/// Does something only qcow2 can.
fn with<T: 'static>(
    (bench, node): (&mut Bench, NodeId),
    work: impl AsyncFnOnce(&Qcow2, &Io) -> T + 'static,
) -> T {
    let driver = driver(bench, node);
    let graph = bench.current.get();
    let ran = bench.control.run(&graph, node, move |io| async move {
        work(driver.as_qcow2().expect("an image"), &io).await
    });
    ran.expect("a turn")
}

fn close(mut bench: Bench, node: NodeId) {
    let driver = driver(&bench, node);
    let graph = bench.current.get();
    let closed = bench.control.run(
        &graph,
        node,
        move |io| async move { driver.close(&io).await },
    );
    closed.expect("a turn").expect("closed");
}

/// Neither errors nor leaks, for qemu-img and for us.
fn sound(path: &Path) {
    run("qemu-img", &["check", "-q", "-f", "qcow2", text(path)]);
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let file = bench.open(support::file(path, Cache::Page));
    let graph = bench.current.get();
    let report = bench.control.run(&graph, file, |io| async move {
        check(&io, file, Repair::Nothing).await
    });
    let report = report.expect("a turn").expect("an image");
    assert!(report.is_clean(), "{report:?}");
}

/// The frozen one is there to be used: merged into another it gives what it said.
fn frozen_says(path: &Path, expected: &[(u64, u64)]) {
    assert_eq!(dirty(path, "frozen"), expected);
    bitmap(path, &["--add", "--disable"], "merged");
    bitmap(path, &["--merge", "frozen"], "merged");
    assert_eq!(dirty(path, "merged"), expected);
    bitmap(path, &["--remove"], "merged");
}

const CHANGES: [(&str, Kind); 6] = [
    ("write", Kind::Write(Durability::Cached)),
    ("write through", Kind::Write(Durability::Through)),
    ("compressed write", Kind::WriteCompressed),
    ("zeroes", Kind::WriteZeroes(Unmap::Keep, Durability::Cached)),
    (
        "zeroes that free",
        Kind::WriteZeroes(Unmap::Allow, Durability::Cached),
    ),
    ("discard", Kind::Discard),
];

#[test]
fn bitmaps_are_in_use_while_the_image_may_be_written_and_right_once_it_is_closed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let image = std::fs::read(&path).expect("read");
    for (what, kind) in CHANGES {
        for mode in [Mode::Fast, Mode::ServeAlways, Mode::Mixed(1)] {
            std::fs::write(&path, &image).expect("written");
            let (mut bench, node) = open(&path, mode);
            assert_eq!(listed(&path), states(true, true), "{what}");
            let mem = match kind {
                Kind::Discard | Kind::WriteZeroes(..) => Mem::none(),
                _ => Mem::zeroed(CLUSTER as usize).expect("memory"),
            };
            let span = support::span(3 << 20, CLUSTER);
            assert_eq!(bench.ask(node, kind, span, &mem), Ok(()), "{what}");
            assert_eq!(listed(&path), states(true, true), "{what}");
            close(bench, node);
            assert_eq!(listed(&path), states(false, false), "{what}");
            sound(&path);
        }
        let both = [(1 << 20, 1 << 20), (3 << 20, CLUSTER)];
        assert_eq!(dirty(&path, "records"), both, "{what}");
        frozen_says(&path, &both[..1]);
    }
}

#[test]
fn a_killed_qemu_leaves_both_in_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let commands = [
        "-c",
        "write 0 64k",
        "-c",
        "flush",
        "-c",
        "abort",
        text(&path),
    ];
    let output = Command::new("qemu-io").args(commands).output();
    assert!(!output.expect("qemu-io").status.success(), "it aborts");
    // So what we leave is what it leaves or better; and we work on what it left.
    assert_eq!(listed(&path), states(true, true));
    let (mut bench, node) = open(&path, Mode::Fast);
    assert_eq!(bench.write(node, 0, &[1; 512]), Ok(()));
    close(bench, node);
    assert_eq!(listed(&path), states(true, true));
    sound(&path);
}

#[test]
fn who_only_reads_an_image_does_not_touch_it_and_who_might_write_leaves_its_bitmaps_right() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let image = std::fs::read(&path).expect("read");
    let mut bench = Bench::new(Choice::Threads, Mode::Fast);
    let mut spec = writes::image(&path, None, Backing::Nothing, Options::default());
    spec.common.access = Access::ReadOnly;
    let node = bench.open(spec);
    for name in ["records", "frozen"] {
        let bitmap = bench
            .current
            .get()
            .node(node)
            .expect("open")
            .bitmaps()
            .find(name);
        assert_eq!(bitmap.expect("loaded").dirty_bytes(), 1 << 20);
    }
    close(bench, node);
    assert!(std::fs::read(&path).expect("read") == image);
    let (mut bench, node) = open(&path, Mode::Fast);
    bench.read(node, 0, 1 << 20);
    assert_eq!(bench.plain(node, Kind::Flush, support::span(0, 0)), Ok(()));
    close(bench, node);
    assert_eq!(listed(&path), states(false, false));
    assert_eq!(dirty(&path, "records"), [(1 << 20, 1 << 20)]);
    sound(&path);
}

#[test]
fn snapshots_leave_bitmaps_right_and_keep_the_disk_from_going_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let (mut bench, node) = open(&path, Mode::Fast);
    with((&mut bench, node), async |image, io| {
        for name in ["one", "two"] {
            let new = NewSnapshot {
                name: name.to_owned(),
                taken: Taken::default(),
            };
            image.create_snapshot(io, new).await.expect("made");
        }
        image.delete_snapshot(io, "one").await.expect("deleted");
        let applied = image.apply_snapshot(io, "two").await;
        assert_eq!(applied, Err(SnapshotFailure::Bitmaps));
    });
    assert_eq!(listed(&path), states(true, true));
    assert_eq!(bench.write(node, 0, &[1; 512]), Ok(()));
    close(bench, node);
    assert_eq!(listed(&path), states(false, false));
    sound(&path);
    let output = Command::new("qemu-img")
        .args(["snapshot", "-a", "two", text(&path)])
        .output()
        .expect("qemu-img");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(&SnapshotFailure::Bitmaps.to_string()),
        "{said}"
    );
    frozen_says(&path, &[(1 << 20, 1 << 20)]);
}

fn resize(path: &Path, size: u64) -> Result<(), ResizeError> {
    let (mut bench, node) = open(path, Mode::Fast);
    let resized = resize_node(&mut bench, node, size);
    close(bench, node);
    resized
}

fn resize_node(bench: &mut Bench, node: NodeId, size: u64) -> Result<(), ResizeError> {
    let soon = Instant::now() + Duration::from_secs(20);
    graph::resize::resize(&bench.current, node, size, &mut bench.control, soon, |_| {})
}

#[test]
fn a_frozen_bitmap_fits_the_disk_after_a_resize_and_says_what_qemus_says() {
    let mib = 1 << 20;
    // Into what is dirty, back, far up, a little down; and to where nothing is dirty, and back.
    let far = [mib + mib / 2 + 512, SIZE, 300 * mib, 300 * mib - 512];
    for sizes in [&far[..], &[mib, 2 * mib]] {
        // Clusters and granularity so small that tables grow and shrink by entries, and move.
        resize_beside_qemu("cluster_size=512", "512", sizes);
        resize_beside_qemu("", "64k", sizes);
    }
}

fn resize_beside_qemu(options: &str, granularity: &str, sizes: &[u64]) {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, qemus) = (dir.path().join("ours"), dir.path().join("qemus"));
    with_bitmaps(&ours, options, granularity);
    bitmap(&ours, &["--remove"], "records");
    std::fs::copy(&ours, &qemus).expect("copied");
    for &size in sizes {
        let what = format!("{granularity} {size}");
        let (mut bench, node) = open(&ours, Mode::Fast);
        let graph = bench.current.get();
        let truncated = bench.control.run(&graph, node, move |io| async move {
            io.truncate(node, size, Prealloc::Off).await
        });
        assert_eq!(truncated.expect("a turn"), Ok(()), "{what}");
        drop(graph);
        close(bench, node);
        let size = size.to_string();
        let args = ["resize", "-q", "--shrink", "-f", "qcow2"];
        run("qemu-img", &[&args[..], &[text(&qemus), &size]].concat());
        sound(&ours);
        assert_eq!(dirty(&ours, "frozen"), dirty(&qemus, "frozen"), "{what}");
        let frozen = states(false, false).pop().expect("the second");
        assert_eq!(listed(&ours), [frozen], "{what}");
    }
}

#[test]
fn an_image_with_a_bitmap_left_in_use_is_not_resized_as_in_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let (mut bench, node) = open(&path, Mode::Fast);
    assert_eq!(bench.write(node, 0, &[1; 512]), Ok(()));
    // Ours to say: it does not stop us.
    resize_node(&mut bench, node, 2 * SIZE).expect("resized");
    // Nobody closes it.
    drop(bench);
    sound(&path);
    assert_eq!(listed(&path), states(true, true));
    let refused = resize(&path, SIZE).expect_err("refused");
    let output = Command::new("qemu-img")
        .args(["resize", "--shrink", text(&path), "8M"])
        .output()
        .expect("qemu-img");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&refused.to_string()), "{said} {refused}");
}

/// A word of the bitmaps extension, or of the directory, is another.
fn damage(image: &[u8], at: impl Fn(usize, usize) -> usize, bytes: &[u8]) -> Vec<u8> {
    let mut extension = 112;
    while image[extension..extension + 4] != 0x2385_2875u32.to_be_bytes() {
        let len = image[extension + 4..extension + 8]
            .try_into()
            .expect("four");
        extension += 8 + (u32::from_be_bytes(len) as usize).next_multiple_of(8);
    }
    let directory = image[extension + 24..extension + 32]
        .try_into()
        .expect("eight");
    let at = at(extension + 8, u64::from_be_bytes(directory) as usize);
    let mut damaged = image.to_vec();
    damaged[at..at + bytes.len()].copy_from_slice(bytes);
    damaged
}

#[test]
fn a_directory_that_is_nonsense_is_refused_in_qemus_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let image = std::fs::read(&path).expect("read");
    let cases = [
        (
            "more of them",
            damage(&image, |extension, _| extension, &[0, 0, 0, 1]),
        ),
        (
            "fewer of them",
            damage(&image, |extension, _| extension, &[0, 0, 0, 3]),
        ),
        (
            "another type",
            damage(&image, |_, directory| directory + 16, &[2]),
        ),
        (
            "extra data",
            damage(&image, |_, directory| directory + 20, &[0, 0, 0, 8]),
        ),
        (
            "a name beyond all",
            damage(&image, |_, directory| directory + 18, &[0xff; 2]),
        ),
        (
            "a table too long",
            damage(&image, |_, directory| directory + 8, &[0, 0, 0, 2]),
        ),
    ];
    for (what, damaged) in cases {
        std::fs::write(&path, &damaged).expect("written");
        let output = Command::new("qemu-img")
            .args(["info", text(&path)])
            .output();
        let said = String::from_utf8_lossy(&output.expect("qemu-img").stderr).into_owned();
        let spec = writes::image(&path, None, Backing::Nothing, Options::default());
        let opened = support::open(&Arc::new(Current::default()), spec);
        let refused = opened.expect_err("refused").to_string();
        assert!(
            said.trim_end().ends_with(&refused),
            "{what}: {said} {refused}"
        );
        assert!(!refused.is_empty(), "{what}");
    }
}

#[test]
fn a_bitmap_that_cannot_be_read_whole_is_refused_and_not_taken_for_clean() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let image = std::fs::read(&path).expect("read");
    let directory = std::cell::Cell::new(0);
    let same = |_, at| {
        directory.set(at);
        at
    };
    damage(&image, same, &[]);
    let table = &image[directory.get()..directory.get() + 8];
    let table = u64::from_be_bytes(table.try_into().expect("eight")) as usize;
    let past = (1u64 << 40).to_be_bytes();
    let table_error = "Could not read bitmap_table table from image for bitmap 'records'";
    let bits_error = "Could not read bitmap 'records' from image";
    let word = |bytes: &[u8]| {
        let mut image = image.clone();
        image[table..table + bytes.len()].copy_from_slice(bytes);
        image
    };
    let at = |at| damage(&image, |_, directory| directory, &u64::to_be_bytes(at));
    let cases = [
        (word(&[0xff]), table_error, "Invalid argument"),
        (
            word(&[0, 0, 0, 0, 0, 1, 0, 1]),
            table_error,
            "Invalid argument",
        ),
        (word(&past), bits_error, "Input/output error"),
        (at(1 << 40), table_error, "Input/output error"),
    ];
    for (damaged, what, why) in cases {
        std::fs::write(&path, &damaged).expect("written");
        let spec = writes::image(&path, None, Backing::Nothing, Options::default());
        let opened = support::open(&Arc::new(Current::default()), spec);
        let refused = opened.expect_err("refused").to_string();
        assert_eq!(refused, format!("{what}: {why}"));
        assert!(std::fs::read(&path).expect("read") == damaged, "untouched");
    }
}

#[test]
fn bitmaps_that_take_more_memory_than_all_may_are_refused_before_any_of_it_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, "", 2 << 40);
    bitmap(&path, &["--add", "-g", "512"], "one");
    let spec = writes::image(&path, None, Backing::Nothing, Options::default());
    let current = Arc::new(Current::default());
    let refused = support::open(&current, spec).expect_err("refused");
    let words = "Bitmaps would need more than 512 MiB of memory";
    assert_eq!(refused.to_string(), words);
    assert_eq!(current.get().bitmap_memory().used_bytes(), 0);
}

/// Others allocate clusters and commit meanwhile.
#[test]
fn bitmaps_come_and_go_under_load_and_miss_nothing() {
    for (seed, mode) in (1..).zip(modes(7)) {
        println!("seed {seed}");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.qcow2");
        create(&path, "cluster_size=4096", SIZE);
        for number in 0..8 {
            bitmap(&path, &["--add"], &format!("old{number}"));
        }
        let (mut bench, node) = open(&path, mode);
        let own = name(&bench, node);
        add(&mut bench, node, "kept", Keeping::Persistent);
        add(&mut bench, node, "memory", Keeping::InMemory);
        let half = SIZE / 2;
        let guests = [0, half].map(|at| Guest::new(node, at, half, seed + at));
        let guests = Guests::start(
            &bench.current,
            &bench.epochs,
            Choice::Threads,
            mode,
            guests.into(),
        );
        for number in 0..8 {
            guests.run_for(40);
            let old = format!("old{number}");
            let removed = admin(&mut bench).remove(&own, &old);
            assert_eq!(removed, Ok(()));
            add(
                &mut bench,
                node,
                &format!("new{number}"),
                Keeping::Persistent,
            );
        }
        guests.run_for(40);
        guests.stop();
        let sha256 = |bench: &Bench, bitmap: &str| {
            let graph = bench.current.get();
            let found = graph.node(node).expect("open").bitmaps().find(bitmap);
            found.expect("there").sha256()
        };
        let expected = sha256(&bench, "memory");
        assert_eq!(sha256(&bench, "kept"), expected);
        close(bench, node);
        sound(&path);
        let (bench, _) = open(&path, mode);
        assert_eq!(sha256(&bench, "kept"), expected);
        let names = listed(&path).into_iter().map(|bitmap| bitmap.name);
        let new = (0..8).rev().map(|number| format!("new{number}"));
        assert_eq!(
            names.collect::<Vec<_>>(),
            new.chain(["kept".to_owned()]).collect::<Vec<_>>()
        );
    }
}

fn name(bench: &Bench, node: NodeId) -> String {
    bench
        .current
        .get()
        .node(node)
        .expect("open")
        .name()
        .to_owned()
}

fn admin(bench: &mut Bench) -> BitmapAdmin<'_> {
    BitmapAdmin {
        current: &bench.current,
        control: &mut bench.control,
    }
}

fn add(bench: &mut Bench, node: NodeId, bitmap: &str, keeping: Keeping) {
    let new = NewBitmap {
        name: bitmap.to_owned(),
        granularity_bytes: None,
        state: State::Recording,
        keeping,
    };
    let node = name(bench, node);
    admin(bench).add(&node, new).expect("added");
}

#[test]
fn many_bitmaps_are_stored_and_loaded() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    create(&path, "", SIZE);
    let (mut bench, node) = open(&path, Mode::Fast);
    for number in 0..2000 {
        add(&mut bench, node, &format!("{number}"), Keeping::Persistent);
    }
    close(bench, node);
    assert_eq!(listed(&path).len(), 2000);
    sound(&path);
    let (mut bench, node) = open(&path, Mode::Fast);
    assert_eq!(bench.write(node, 0, &[1; 512]), Ok(()));
    close(bench, node);
    let all = listed(&path);
    assert!(all.iter().all(|bitmap| !bitmap.in_use && bitmap.auto));
    assert_eq!(all.len(), 2000);
    sound(&path);
}

#[test]
fn bitmaps_without_the_autoclear_bit_are_leaks_as_in_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("disk.qcow2");
    with_bitmaps(&path, "", "64k");
    let mut image = std::fs::read(&path).expect("read");
    image[95] = 0;
    std::fs::write(&path, &image).expect("written");
    let (mut bench, node) = open(&path, Mode::Fast);
    assert_eq!(
        with((&mut bench, node), async |image, _| image.bitmaps()),
        []
    );
    assert_eq!(bench.write(node, 0, &[1; 512]), Ok(()));
    close(bench, node);
    assert_eq!(listed(&path), []);
    let output = Command::new("qemu-img")
        .args(["check", "-q", text(&path)])
        .output();
    assert_eq!(output.expect("qemu-img").status.code(), Some(3), "leaks");
    run("qemu-img", &["check", "-q", "-r", "leaks", text(&path)]);
    sound(&path);
}
