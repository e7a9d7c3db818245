//! The hostile table: malformed messages, chains and ring states, and what each must come to.
//!
//! Every line ends in one of its stated outcome classes; after it the process lives, the next front end is served (a
//! write and a read, compared), and over a thousand such connections neither descriptors nor mappings nor memory grow.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test stops where it is surprised"
)]

mod chains;
mod fd_messages;
mod inflight_messages;
mod live;
mod memory_messages;
mod messages;
mod probe;
mod ring_messages;
mod shapes;

use std::io;

use tests::client::blk::{OK, Request};
use tests::client::front::{FrontEnd, GUEST_FEATURES, Habits, Speaker, feature};
use tests::client::guest::{Client, Guest, Setup};
use tests::client::pattern::{Model, differ, pattern};
use tests::client::starter::{Disk, Kind, Running};

use probe::{Case, RING_ERROR, Shot, Stage, fire, goes_on};

fn setup() -> Setup {
    Setup {
        client: Client::Ours(Habits::CloudHypervisor),
        ..Setup::default()
    }
}

fn qsd() -> bool {
    Kind::from_env() == Kind::QemuStorageDaemon
}

/// Brings a session as far as the case wants it.
fn reach(daemon: &Running, stage: Stage) -> io::Result<Guest> {
    if stage == Stage::Running {
        return Guest::start(&daemon.socket, setup());
    }
    let mut guest = Guest::connect(&daemon.socket, setup())?;
    match stage {
        Stage::Fresh => {
            let silent: Box<dyn FrontEnd> =
                Box::new(Speaker::connect(&daemon.socket, Habits::CloudHypervisor)?);
            drop(std::mem::replace(&mut guest.front, silent));
        }
        Stage::Negotiated => guest.front.set_features(guest.agreed.features)?,
        Stage::Mapped | Stage::Running => guest.announce_memory()?,
    }
    Ok(guest)
}

/// Runs a case and checks everything that must hold afterwards.
fn check(daemon: &Running, case: &Case) -> Result<(), String> {
    let mut guest = reach(daemon, case.stage).map_err(|e| format!("no session: {e}"))?;
    let outcome = (case.run)(&mut guest);
    if !case.expect.contains(&outcome) {
        return Err(format!(
            "ended in {outcome:?}, wanted one of {:?}",
            case.expect
        ));
    }
    goes_on(&mut guest, outcome)
}

/// The next front end is served: a write, and a read that finds it.
fn next_is_served(daemon: &Running, salt: u64) -> Result<(), String> {
    let told = |e: io::Error| format!("the next front end is not served: {e}");
    let mut guest = Guest::start(&daemon.socket, setup()).map_err(told)?;
    let bytes = pattern(salt, 4096);
    let wrote = guest
        .run(0, &Request::write(8, bytes.clone()))
        .map_err(told)?;
    let read = guest.run(0, &Request::read(8, 4096)).map_err(told)?;
    if wrote.status != OK || read.status != OK {
        return Err(format!(
            "the next front end is refused: {wrote:?} {}",
            read.status
        ));
    }
    differ(&read.data, &bytes)
}

fn all_cases() -> Vec<Case> {
    [messages::all(), chains::all(), live::all()]
        .into_iter()
        .flatten()
        .collect()
}

fn disk(model: &Model) -> Disk {
    let export_options = if qsd() { "num-queues=16" } else { "" };
    Disk {
        export_options,
        ..Disk::file(&model.path)
    }
}

fn start(model: &Model) -> Running {
    Running::start(Kind::from_env(), &disk(model)).unwrap()
}

fn run_table(cases: &[Case], daemon: &mut Running, model: &Model) -> Vec<String> {
    let only = std::env::var("HOSTILE_ONLY").unwrap_or_default();
    let mut failures = Vec::new();
    for (i, case) in cases
        .iter()
        .enumerate()
        .filter(|(_, case)| case.name.contains(&only))
    {
        let mut found: Vec<String> = check(daemon, case).err().into_iter().collect();
        if daemon.alive() {
            found.extend(next_is_served(daemon, i as u64).err());
        }
        if !daemon.alive() {
            found.push(format!(
                "the daemon died: {}",
                daemon.log().lines().last().unwrap_or("")
            ));
            *daemon = start(model);
        } else if !found.is_empty() && qsd() {
            *daemon = start(model);
        }
        for what in found {
            eprintln!("{}: {what}", case.name);
            failures.push(format!("{}: {what}", case.name));
        }
    }
    failures
}

#[test]
fn every_attack_ends_in_its_class_and_the_next_front_end_is_served() {
    let model = Model::new(64 << 20).unwrap();
    let cases = all_cases();
    assert!(cases.len() >= 100);
    let mut daemon = start(&model);
    let failures = run_table(&cases, &mut daemon, &model);
    let report = format!(
        "{} of {} lines failed:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    if qsd() {
        // The real one dies of some of these; what counts is that the client is right where it is right.
        return eprintln!("{report}");
    }
    assert!(failures.is_empty(), "{report}");
}

#[test]
fn an_indirect_table_that_was_not_negotiated_breaks_the_ring() {
    let model = Model::new(1 << 20).unwrap();
    let daemon = start(&model);
    if qsd() {
        return eprintln!("qemu-storage-daemon takes it");
    }
    let features = GUEST_FEATURES & !feature::INDIRECT_DESC;
    let mut guest = Guest::start(
        &daemon.socket,
        Setup {
            features,
            ..setup()
        },
    )
    .unwrap();
    let layout = tests::client::blk::Layout {
        table: tests::client::blk::Table::Indirect,
        ..Default::default()
    };
    let pending = guest.add(0, &Request::read(0, 512).laid(layout));
    let outcome = fire(
        &mut guest,
        Shot {
            head: pending.head,
            status: None,
        },
    );
    assert!(RING_ERROR.contains(&outcome), "{outcome:?}");
}

/// What could grow.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    fds: usize,
    mappings: usize,
    rss_kib: u64,
}

/// Measured when the last session has ended for certain: a new one has been through.
fn size(daemon: &Running) -> Size {
    next_is_served(daemon, 1).unwrap();
    // The session's end is seen by a probe that is let in only when it is over.
    drop(Guest::connect(&daemon.socket, setup()).unwrap());
    let probe = Speaker::connect(&daemon.socket, Habits::Qemu).unwrap();
    probe
        .wire
        .send(tests::client::wire::req::GET_FEATURES, 0, &[], &[])
        .unwrap();
    probe.wire.recv().unwrap();
    Size {
        fds: daemon.open_fds(),
        mappings: daemon.mappings(),
        rss_kib: daemon.rss_kib(),
    }
}

#[test]
fn a_thousand_hostile_connections_leave_nothing_behind() {
    const CONNECTIONS: usize = 1000;
    const GROWTH_KIB: u64 = 4096;
    let model = Model::new(64 << 20).unwrap();
    if qsd() {
        return eprintln!("qemu-storage-daemon does not live that long");
    }
    let mut daemon = start(&model);
    // A descriptor flood and the thread-heavy lines are slow, and run once; the rest makes the number.
    let cases: Vec<Case> = all_cases()
        .into_iter()
        .filter(|c| !c.name.contains("flips"))
        .collect();
    run_table(&cases, &mut daemon, &model);
    let before = size(&daemon);
    let mut connections = 0;
    while connections < CONNECTIONS {
        for case in &cases {
            // What each comes to is the other test's business.
            let _ = check(&daemon, case);
            connections += 1;
        }
    }
    let after = size(&daemon);
    eprintln!("{connections} connections: {before:?}, then {after:?}");
    assert!(daemon.alive());
    assert_eq!(
        after.fds, before.fds,
        "descriptors grew over {connections} connections"
    );
    assert!(
        after.mappings <= before.mappings + 8,
        "mappings grew: {before:?} {after:?}"
    );
    assert!(
        after.rss_kib <= before.rss_kib + GROWTH_KIB,
        "memory grew: {before:?} {after:?}"
    );
}
