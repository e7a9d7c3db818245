//! Null nodes and raw files: what everything else stands on.

use std::io;

use super::super::load::{Direction, Load, Order, Waiting};
use super::super::report::Goal;
use super::{
    Contender, Cpus, DIRECT_NATIVE, DIRECT_URING, Named, Plan, Subject, ours, qsd, random_4k,
};
use crate::client::starter::Node;

const NULL_BYTES: u64 = 1 << 40;
const READ: Direction = Direction::Read;

pub(super) const ROWS: &[Named] = &[
    ("null 4k QD64, one CPU", |_| {
        let load = random_4k(64, READ, NULL_BYTES);
        plan(load, nulls(), Cpus::One)
    }),
    ("null 4k QD64, polled, two CPUs", |_| {
        let load = Load {
            waiting: Waiting::Poll,
            ..random_4k(64, READ, NULL_BYTES)
        };
        plan(load, nulls(), Cpus::Apart)
    }),
    ("direct 4k randread QD64, one CPU", |subject| {
        let load = random_4k(64, READ, subject.file_bytes);
        plan(load, direct(subject), Cpus::One)
    }),
    ("direct 4k randwrite QD64, one CPU", |subject| {
        let load = random_4k(64, Direction::Write, subject.file_bytes);
        plan(load, direct(subject), Cpus::One)
    }),
    ("direct 4k randread QD1, two CPUs", |subject| {
        let load = random_4k(1, READ, subject.file_bytes);
        plan(load, direct(subject), Cpus::Apart)
    }),
    ("null 4k QD64 per queue, two CPUs", |_| {
        let load = random_4k(64, READ, NULL_BYTES);
        plan(load, four(&Node::Null(NULL_BYTES), ""), Cpus::Both)
    }),
    ("page cache 4k QD32 per queue, two CPUs", |subject| {
        let load = random_4k(32, READ, subject.file_bytes);
        plan(load, four(&disk(subject), "aio=io_uring"), Cpus::Both)
    }),
    ("page cache 4k QD32, one CPU", |subject| {
        let pair = vec![
            ours("virtioblkd", disk(subject), "", 1),
            qsd("QSD", disk(subject), "aio=io_uring", 1),
        ];
        plan(random_4k(32, READ, subject.file_bytes), pair, Cpus::One)
    }),
    ("direct 64k sequential read QD16, two CPUs", |subject| {
        let load = sequential(65536, 16, subject);
        plan(load, direct(subject), Cpus::Apart)
    }),
    ("direct 1M sequential read QD8, two CPUs", |subject| {
        let load = sequential(1 << 20, 8, subject);
        plan(load, direct(subject), Cpus::Apart)
    }),
];

fn plan(load: Load, contenders: Vec<Contender>, cpus: Cpus) -> io::Result<Plan> {
    let goals: Vec<Goal> = Vec::new();
    Ok(Plan {
        load,
        contenders,
        reference: 1,
        cpus,
        goals,
        _images: None,
    })
}

fn disk(subject: &Subject<'_>) -> Node {
    Node::File(subject.file.to_owned())
}

fn nulls() -> Vec<Contender> {
    let null = || Node::Null(NULL_BYTES);
    vec![ours("virtioblkd", null(), "", 1), qsd("QSD", null(), "", 1)]
}

fn direct(subject: &Subject<'_>) -> Vec<Contender> {
    vec![
        ours("virtioblkd", disk(subject), DIRECT_URING, 1),
        qsd("QSD io_uring", disk(subject), DIRECT_URING, 1),
        qsd("QSD native", disk(subject), DIRECT_NATIVE, 1),
        Contender::Fio {
            file: subject.file.to_owned(),
        },
    ]
}

fn four(node: &Node, qsd_options: &'static str) -> Vec<Contender> {
    vec![
        ours("virtioblkd, 4 queues", node.clone(), "", 4),
        qsd("QSD, 4 queues", node.clone(), qsd_options, 4),
        ours("virtioblkd, 1 queue", node.clone(), "", 1),
    ]
}

fn sequential(block_bytes: u32, depth: u16, subject: &Subject<'_>) -> Load {
    Load {
        block_bytes,
        depth,
        order: Order::Sequential,
        stride_bytes: u64::from(block_bytes),
        ..random_4k(0, READ, subject.file_bytes)
    }
}
