//! Nodes opened anew and layers put on top while requests run: nothing is lost, nobody waits for long, what may not be is
//! refused in QEMU's words and changes nothing.

use crate::support;
use blockgraph::bitmap::{
    BitmapAdmin, DirtyBitmap, Keeping, NewBitmap, State as BitmapState, find,
};
use blockgraph::driver::file::Cache;
use blockgraph::driver::qcow2::Options;
use blockgraph::filter::throttle::{Limits, Rate};
use blockgraph::graph::edit::{Edit, Leaving};
use blockgraph::graph::gate::Named;
use blockgraph::graph::open::{
    self, Backing, Child, DriverSpec, FileSpec, FilterSpec, NodeSpec, Qcow2Spec,
};
use blockgraph::graph::perm::{Attachment, Perms, Wants, attach};
use blockgraph::graph::reopen::reopen;
use blockgraph::graph::{Access, Control};
use blockgraph::pin::Epochs;
use blockgraph::{Current, Mode, NodeId, Span};
use ring::Choice;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::guests::{Guest, Guests};
use support::{Chance, common, file_options, qcow2, qemu};

const SIZE: u64 = 8 << 20;

/// The control side of a graph with guests on it.
struct Place {
    dir: tempfile::TempDir,
    current: Arc<Current>,
    epochs: Arc<Epochs>,
    control: Control,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn named(name: &str) -> Child {
    Child::Named(name.to_owned())
}

fn spec(name: &str, driver: DriverSpec) -> NodeSpec {
    NodeSpec {
        name: Some(name.to_owned()),
        common: common(),
        driver,
    }
}

fn raw(name: &str, file: &str) -> NodeSpec {
    let file = named(file);
    let window = Default::default();
    spec(
        name,
        DriverSpec::Raw {
            file,
            window,
            journal: None,
        },
    )
}

fn throttle(name: &str, group: &str, file: &str) -> NodeSpec {
    let (file, group) = (named(file), group.to_owned());
    let filter = FilterSpec::Throttle { file, group };
    spec(name, DriverSpec::Filter(Box::new(filter)))
}

fn copy_on_read(name: &str, file: &str, bottom: Option<&str>) -> NodeSpec {
    let filter = FilterSpec::CopyOnRead {
        file: named(file),
        bottom: bottom.map(str::to_owned),
    };
    spec(name, DriverSpec::Filter(Box::new(filter)))
}

fn image(name: &str, file: &str, backing: Backing, options: Options) -> NodeSpec {
    let image = Qcow2Spec {
        file: named(file),
        data_file: None,
        backing,
        options,
        named: Named::default(),
        journal: None,
    };
    spec(name, DriverSpec::Qcow2(Box::new(image)))
}

fn read_only(mut spec: NodeSpec) -> NodeSpec {
    spec.common.access = Access::ReadOnly;
    spec
}

impl Place {
    fn new(choice: Choice, mode: Mode) -> Place {
        let (current, epochs) = (Arc::<Current>::default(), Arc::<Epochs>::default());
        let control = Control::in_mode(current.clone(), epochs.clone(), choice, mode);
        Place {
            dir: tempfile::tempdir().expect("a directory"),
            control: control.expect("a ring"),
            current,
            epochs,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, path: &str, cache: Cache) -> NodeSpec {
        let options = file_options(&self.path(path), cache);
        spec(name, DriverSpec::File(FileSpec { options }))
    }

    fn add(&mut self, spec: NodeSpec) -> Result<NodeId, String> {
        let opened = open::open(&self.current, spec, &mut self.control);
        Ok(opened.map_err(|error| error.to_string())?.0)
    }

    fn reopen(&mut self, specs: Vec<NodeSpec>) -> Result<(), String> {
        let reopened = reopen(&self.current, specs, &mut self.control, soon(), |_| {});
        let (graph, leaving) = reopened.map_err(|error| error.to_string())?;
        drop(graph);
        self.finish(leaving)
    }

    fn finish(&mut self, leaving: Leaving) -> Result<(), String> {
        let finished = leaving.finish(&mut self.control, soon());
        finished.map_err(|(error, _)| error.to_string())
    }

    fn snapshot(&mut self, node: &str, overlay: &str) -> Result<(), String> {
        let mut edit = Edit::begin(&self.current);
        let find = |name| edit.graph().find(name).expect("there");
        let (node, overlay) = (find(node), find(overlay));
        let put = edit.put_overlay(node, overlay);
        put.map_err(|error| error.to_string())?;
        let touched = BTreeSet::from([node, overlay]);
        let done = edit.commit_quiet(&touched, &mut self.control, soon());
        let (_, leaving) = done.map_err(|error| error.to_string())?;
        self.finish(leaving)
    }

    fn remove(&mut self, name: &str) -> Result<(), String> {
        let mut edit = Edit::begin(&self.current);
        edit.remove(name).map_err(|error| error.to_string())?;
        let done = edit.commit().map_err(|error| error.to_string())?;
        self.finish(done.1)
    }

    fn attach(&self, name: &str) -> Attachment {
        let node = self.current.get().find(name).expect("there");
        attach(&self.current, node, Wants::READ_WRITE, None).expect("attached")
    }

    fn id(&self, name: &str) -> NodeId {
        self.current.get().find(name).expect("there")
    }

    fn names(&self) -> Vec<String> {
        let graph = self.current.get();
        let mut names: Vec<String> = graph.nodes().map(|(_, n)| n.name().to_owned()).collect();
        names.sort();
        names
    }
}

fn raw_file(place: &Place, name: &str) {
    let file = std::fs::File::create(place.path(name)).expect("created");
    file.set_len(SIZE).expect("sized");
}

/// raw on file, qcow2 on that and a base below.
fn stack(place: &mut Place) {
    raw_file(place, "disk.raw");
    qcow2::create(&place.path("base.q"), "", SIZE);
    qcow2::overlay(
        &place.path("top.q"),
        "",
        SIZE,
        &place.path("base.q"),
        "qcow2",
    );
    let page = Cache::Page;
    let all = [
        place.file("f", "disk.raw", page),
        raw("r", "f"),
        read_only(place.file("bf", "base.q", page)),
        read_only(image("b", "bf", Backing::Nothing, Options::default())),
        place.file("tf", "top.q", page),
        image("t", "tf", Backing::Node(named("b")), Options::default()),
    ];
    for node in all {
        place.add(node).expect("opened");
    }
    let groups = place.current.get().throttle_groups().clone();
    groups.add("g", Limits::default()).expect("added");
    groups.add("h", Limits::default()).expect("added");
}

#[test]
fn what_a_node_cannot_become_is_refused_in_qemus_words_and_changes_nothing() {
    let mut place = Place::new(Choice::Threads, Mode::Fast);
    stack(&mut place);
    let page = Cache::Page;
    let other_file = place.file("f", "other.raw", page);
    let mut forced = read_only(place.file("f", "disk.raw", page));
    forced.common.sharing = blockgraph::graph::Sharing::Forced;
    place.add(copy_on_read("c", "t", None)).expect("opened");
    let rows = [
        (
            raw("nope", "f"),
            "Failed to find node with node-name='nope'",
        ),
        (raw("f", "f"), "Cannot change the option 'driver'"),
        (other_file, "Cannot change the option 'filename'"),
        (forced, "Cannot change the option 'force-share'"),
        (
            raw("r", "nope"),
            "Cannot find device='' nor node-name='nope'",
        ),
        (
            raw("r", "r"),
            "Making 'r' a file child of 'r' would create a cycle",
        ),
        (
            image("b", "bf", Backing::Node(named("t")), Options::default()),
            "Making 't' a backing child of 'b' would create a cycle",
        ),
        (
            image("t", "tf", Backing::Stored, Options::default()),
            "backing is missing for 't'",
        ),
        (
            copy_on_read("c", "t", None),
            "Block format 'copy-on-read' used by node 'c' does not support reopening files",
        ),
        (
            read_only(place.file("tf", "top.q", page)),
            "Read-only block node 'tf' cannot support read-write users",
        ),
    ];
    let (generation, names) = (place.current.generation(), place.names());
    for (spec, expected) in rows {
        let fine = place.file("f", "disk.raw", Cache::Direct);
        let refused = place.reopen(vec![fine, spec]);
        assert_eq!(refused, Err(expected.to_owned()));
        assert_eq!(place.names(), names);
        let graph = place.current.get();
        let f = graph.node(graph.find("f").expect("there")).expect("there");
        assert_eq!(
            f.files()[0].align(),
            ring::Align::NONE,
            "still in the page cache"
        );
    }
    assert!(place.current.generation() >= generation);
    assert_eq!(place.reopen(Vec::new()), Ok(()));
}

#[test]
fn an_image_becomes_read_only_clean_and_writable_again() {
    let mut place = Place::new(Choice::Threads, Mode::Fast);
    stack(&mut place);
    let lazy = || {
        let mut options = Options::default();
        options.write.lazy_refcounts = Some(true);
        image("t", "tf", Backing::Node(named("b")), options)
    };
    place.reopen(vec![lazy()]).expect("reopened");
    let top = place.id("t");
    let guest = Guests::start(
        &place.current,
        &place.epochs,
        Choice::Threads,
        Mode::Fast,
        vec![Guest::new(top, 0, SIZE, 5)],
    );
    guest.run_for(200);
    let content = guest.stop();
    let ro = read_only(lazy());
    let file_ro = read_only(place.file("tf", "top.q", Cache::Page));
    place.reopen(vec![ro, file_ro]).expect("reopened");
    let path = place.path("top.q");
    qemu::check(place.dir.path(), "top.q");
    assert_eq!(
        qcow2::flat(&path, "qcow2"),
        content[0],
        "all of it is on disk"
    );
    let refused = place.reopen(vec![lazy()]);
    assert_eq!(
        refused,
        Err("Block node is read-only".to_owned()),
        "its file is"
    );
    let file = place.file("tf", "top.q", Cache::Page);
    place.reopen(vec![file, lazy()]).expect("reopened");
    let again = Guest::with(top, 0, content[0].clone(), 6);
    let guest = Guests::start(
        &place.current,
        &place.epochs,
        Choice::Threads,
        Mode::Fast,
        vec![again],
    );
    guest.run_for(200);
    let content = guest.stop();
    place.reopen(vec![read_only(lazy())]).expect("reopened");
    qemu::check(place.dir.path(), "top.q");
    assert_eq!(qcow2::flat(&path, "qcow2"), content[0]);
}

#[test]
fn a_file_opened_in_another_way_is_the_same_file_and_keeps_its_locks() {
    let mut place = Place::new(Choice::Threads, Mode::Fast);
    raw_file(&place, "disk.raw");
    let page = place.file("f", "disk.raw", Cache::Page);
    place.add(page.clone()).expect("opened");
    place.add(raw("r", "f")).expect("opened");
    let export = place.attach("r");
    let locked = |place: &Place| {
        let output = qemu::run(
            place.dir.path(),
            "qemu-io",
            &["-f", "raw", "-c", "write 0 512", "disk.raw"],
        );
        !output.status.success()
    };
    // What is renamed away is found all the same.
    std::fs::rename(place.path("disk.raw"), place.path("elsewhere")).expect("renamed");
    let direct = place.file("f", "disk.raw", Cache::Direct);
    for spec in [direct, page.clone()] {
        place.reopen(vec![spec]).expect("reopened");
        let there = std::fs::read_dir("/proc/self/fd")
            .expect("listed")
            .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        let mine: Vec<PathBuf> = there
            .filter(|link| *link == place.path("elsewhere"))
            .collect();
        assert_eq!(mine.len(), 1, "the one before is closed");
    }
    std::fs::rename(place.path("elsewhere"), place.path("disk.raw")).expect("renamed");
    // An export shares writing with others, so a guard that does not is what the locks are seen by.
    let refused = read_only(page.clone());
    assert_eq!(
        place.reopen(vec![refused]),
        Err("Read-only block node 'f' cannot support read-write users".to_owned())
    );
    drop(export);
    let guard = Wants {
        shares: Wants::READ
            .shares
            .without(Wants::READ_WRITE.needs.without(Wants::READ.needs)),
        ..Wants::READ
    };
    let held = attach(&place.current, place.id("r"), guard, None).expect("attached");
    assert!(locked(&place));
    place
        .reopen(vec![place.file("f", "disk.raw", Cache::Direct)])
        .expect("reopened");
    assert!(locked(&place), "the new descriptor has them");
    place.reopen(vec![read_only(page)]).expect("reopened");
    assert!(locked(&place));
    drop(held);
    assert!(!locked(&place));
}

#[test]
fn a_throttled_request_does_not_hold_up_an_edit() {
    let mut place = Place::new(Choice::Threads, Mode::Fast);
    stack(&mut place);
    // A block takes more than an hour.
    let slow = Limits {
        bps_total: Rate {
            avg: 1,
            max: 0,
            max_length_s: 1,
        },
        ..Limits::default()
    };
    place
        .current
        .get()
        .throttle_groups()
        .add("slow", slow)
        .expect("added");
    place.add(throttle("th", "slow", "r")).expect("opened");
    let top = place.id("th");
    let guest = Guests::start(
        &place.current,
        &place.epochs,
        Choice::Threads,
        Mode::Fast,
        vec![Guest::new(top, 0, SIZE, 8)],
    );
    guest.run_until_busy();
    place
        .reopen(vec![throttle("th", "g", "r")])
        .expect("reopened");
    guest.run_for(100);
    guest.stop();
}

#[test]
fn an_edit_whose_requests_do_not_end_gives_up_and_changes_nothing() {
    let mut place = Place::new(Choice::Threads, Mode::Fast);
    stack(&mut place);
    let long = 4_000_000_000;
    let delay = |latency_ns| {
        spec(
            "d",
            DriverSpec::Delay {
                file: named("r"),
                latency_ns,
            },
        )
    };
    place.add(delay(long)).expect("opened");
    let top = place.id("d");
    let guest = Guests::start(
        &place.current,
        &place.epochs,
        Choice::Threads,
        Mode::Fast,
        vec![Guest::new(top, 0, SIZE, 9)],
    );
    guest.run_until_busy();
    let deadline = Instant::now() + Duration::from_millis(50);
    let control = &mut place.control;
    let late = reopen(&place.current, vec![delay(0)], control, deadline, |_| {});
    let error = late.expect_err("too late").to_string();
    assert_eq!(
        error,
        "Requests under way did not end in time; nothing was changed"
    );
    guest.run_for(1);
    place.reopen(vec![delay(0)]).expect("reopened");
    guest.run_for(50);
    guest.stop();
}

/// One random edit of the stack. `filters` are the names of those that are there.
fn edit(place: &mut Place, chance: &mut Chance, state: &mut State) -> Result<(), String> {
    let options = |chance: &mut Chance| {
        let mut options = Options::default();
        options.write.lazy_refcounts = Some(chance.below(2) == 0);
        options.cache.l2 = [None, Some(65536), Some(1 << 20)][chance.below(3) as usize];
        options
    };
    let backing = |state: &State| match &state.below {
        Some(below) => Backing::Node(named(below)),
        None => Backing::Nothing,
    };
    match chance.below(9) {
        0 => {
            let cache = [Cache::Page, Cache::Direct][chance.below(2) as usize];
            place.reopen(vec![place.file("f", "disk.raw", cache)])
        }
        1 => {
            let cache = [Cache::Page, Cache::Direct][chance.below(2) as usize];
            place.reopen(vec![place.file("tf", "top.q", cache)])
        }
        2 | 3 => {
            state.file = chance.below(3) as usize;
            let file = ["tf", "tth", "tpre"][state.file];
            place.reopen(vec![image("t", file, backing(state), options(chance))])
        }
        4 => place.reopen(vec![raw("r", ["f", "fth"][chance.below(2) as usize])]),
        5 => {
            let group = ["g", "h"][chance.below(2) as usize];
            place.reopen(vec![
                throttle("fth", group, "f"),
                throttle("tth", group, "tf"),
            ])
        }
        6 => {
            // A layer more, or less: what is above the guest's first image is an overlay of this test's.
            state.layers += 1;
            let n = state.layers;
            let (file, name) = (format!("o{n}.q"), format!("o{n}"));
            qcow2::create(&place.path(&file), "", SIZE);
            let opened = place.file(&format!("of{n}"), &file, Cache::Page);
            place.add(opened)?;
            place.add(image(
                &name,
                &format!("of{n}"),
                Backing::Nothing,
                Options::default(),
            ))?;
            let top = state.top.clone();
            place.snapshot(&top, &name)?;
            state.top = name;
            Ok(())
        }
        7 if state.layers > 0 => {
            // A refused edit in between.
            let refused = place.reopen(vec![image("t", "tf", Backing::Stored, Options::default())]);
            assert_eq!(refused, Err("backing is missing for 't'".to_owned()));
            Ok(())
        }
        _ => {
            let file = ["tf", "tth", "tpre"][state.file];
            place.reopen(vec![
                image("t", file, backing(state), options(chance)),
                raw("r", "fth"),
                throttle("fth", "g", "f"),
            ])
        }
    }
}

struct State {
    file: usize,
    below: Option<String>,
    top: String,
    layers: usize,
}

#[test]
fn random_edits_under_load_lose_nothing_and_leave_nothing_behind() {
    let seed = 1;
    for mode in support::modes(seed) {
        for choice in support::engines() {
            println!("seed {seed} {mode:?} {choice:?}");
            soak(seed, mode, choice, 30);
        }
    }
}

fn soak(seed: u64, mode: Mode, choice: Choice, edits: usize) {
    let mut place = Place::new(Choice::Threads, mode);
    stack(&mut place);
    for node in [
        throttle("fth", "g", "f"),
        throttle("tth", "g", "tf"),
        spec(
            "tpre",
            DriverSpec::Filter(Box::new(FilterSpec::Preallocate {
                file: named("tf"),
                align_bytes: 65536,
                ahead_bytes: 0,
            })),
        ),
    ] {
        place.add(node).expect("opened");
    }
    let exports = [place.attach("r"), place.attach("t")];
    let (r, t) = (exports[0].node(), exports[1].node());
    let guests = Guests::start(
        &place.current,
        &place.epochs,
        choice,
        mode,
        vec![
            Guest::new(r, 0, SIZE, seed),
            Guest::new(t, 0, SIZE, seed + 100),
        ],
    );
    let mut chance = Chance(seed);
    let mut state = State {
        file: 0,
        below: Some("b".to_owned()),
        top: "t".to_owned(),
        layers: 0,
    };
    let slowest = AtomicU64::new(0);
    for n in 0..edits {
        let begun = Instant::now();
        edit(&mut place, &mut chance, &mut state)
            .unwrap_or_else(|error| panic!("edit {n}: {error}"));
        slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        guests.run_for(20);
    }
    println!("slowest edit {} ms", slowest.load(Ordering::Relaxed));
    let contents = guests.stop();
    drop(exports);
    for layer in (1..=state.layers).rev() {
        place.remove(&format!("o{layer}")).expect("removed");
        place.remove(&format!("of{layer}")).expect("removed");
    }
    for name in ["t", "r", "fth", "tth", "tpre", "f", "tf", "b", "bf"] {
        place.remove(name).expect(name);
    }
    assert_eq!(place.names(), [""; 0]);
    for image in ["top.q", "base.q"] {
        qemu::check(place.dir.path(), image);
    }
    assert!(
        std::fs::read(place.path("disk.raw")).expect("read") == contents[0],
        "the raw disk"
    );
    let open = std::fs::read_dir("/proc/self/fd")
        .expect("listed")
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let left: Vec<PathBuf> = open
        .filter(|link| link.starts_with(place.dir.path()))
        .collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "every descriptor is closed");
}

/// What is not zero, and is not called dirty.
fn missed(content: &[u8], bitmap: &DirtyBitmap) -> Vec<u64> {
    let unit = u64::from(bitmap.granularity_bytes());
    let blocks = content.chunks(unit as usize).enumerate();
    let changed = blocks.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
    let places = changed.map(|(at, _)| at as u64 * unit);
    let clean = |at: &u64| bitmap.next_dirty(Span { at: *at, len: unit }).is_none();
    places.filter(clean).collect()
}

#[test]
fn bitmaps_stay_with_nodes_that_are_opened_anew_and_with_those_that_get_an_overlay() {
    let mut place = Place::new(Choice::Threads, Mode::Fast);
    stack(&mut place);
    let new = NewBitmap {
        name: "m".to_owned(),
        granularity_bytes: Some(4096),
        state: BitmapState::Recording,
        keeping: Keeping::InMemory,
    };
    let (current, control) = (&place.current, &mut place.control);
    let added = BitmapAdmin { current, control }.add("t", new);
    added.expect("added");
    let top = place.id("t");
    let guest = Guests::start(
        &place.current,
        &place.epochs,
        Choice::Threads,
        Mode::Fast,
        vec![Guest::new(top, 0, SIZE, 8)],
    );
    for lazy in [true, false, true] {
        guest.run_for(60);
        let mut options = Options::default();
        options.write.lazy_refcounts = Some(lazy);
        let image = image("t", "tf", Backing::Node(named("b")), options);
        place.reopen(vec![image]).expect("reopened");
    }
    guest.run_for(60);
    qcow2::create(&place.path("o.q"), "", SIZE);
    let overlay = place.file("of", "o.q", Cache::Page);
    place.add(overlay).expect("opened");
    let overlay = image("o", "of", Backing::Nothing, Options::default());
    place.add(overlay).expect("opened");
    place.snapshot("t", "o").expect("an overlay");
    let found = || find(&place.current.get(), "t", "m").expect("still there");
    let before = found().bitmap.dirty_bytes();
    guest.run_for(60);
    guest.stop();
    let bitmap = found().bitmap;
    assert_eq!(
        bitmap.dirty_bytes(),
        before,
        "what is written is not its node's any more"
    );
    assert_eq!(bitmap.state(), BitmapState::Recording);
    // Nobody else may read it while it could be written.
    let mut options = Options::default();
    options.write.lazy_refcounts = Some(true);
    let below = image("t", "tf", Backing::Node(named("b")), options);
    let file = place.file("tf", "top.q", Cache::Page);
    let both = vec![read_only(below), read_only(file)];
    place.reopen(both).expect("read-only");
    let lower = qcow2::flat(&place.path("top.q"), "qcow2");
    assert_eq!(missed(&lower, &bitmap), []);
    assert!(before > 0 && lower.iter().any(|byte| *byte != 0));
}

/// What QEMU's `allow-write-only-overlay` promises: the backing file of a job's target can be another while the job writes.
#[test]
fn an_overlay_that_is_only_written_to_gets_something_below_it_and_stays_where_it_is() {
    let mut place = Place::new(Choice::Threads, Mode::Fast);
    stack(&mut place);
    qcow2::create(&place.path("over.q"), "", SIZE);
    let file = place.file("of", "over.q", Cache::Page);
    place.add(file).expect("opened");
    let over = image("o", "of", Backing::Nothing, Options::default());
    place.add(over).expect("opened");
    let (overlay, below) = (place.id("o"), place.id("r"));
    let in_use = Err("The overlay is already in use".to_owned());
    let reader = place.attach("o");
    assert_eq!(place.snapshot("r", "o"), in_use);
    drop(reader);
    let writes = Wants {
        needs: Perms::WRITE,
        shares: Perms::ALL,
    };
    let writer = attach(&place.current, overlay, writes, None).expect("attached");
    // Both would have to be at a place of their own.
    let other = place.attach("r");
    assert_eq!(place.snapshot("r", "o"), in_use);
    drop(other);
    assert_eq!(place.snapshot("r", "o"), Ok(()));
    assert_eq!((place.id("o"), place.id("r")), (overlay, below));
    assert_eq!(place.current.get().cow_child(overlay), Some(below));
    let left = place.remove("r");
    assert_eq!(
        left,
        Err("Node 'r' is busy: node is used as backing hd of 'o'".to_owned())
    );
    drop(writer);
}
