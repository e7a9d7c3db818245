//! Filters that have nothing to do.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::load::Direction;
use super::super::report::{Bound, Figure, Goal};
use super::images;
use super::{Contender, Cpus, Named, Plan, Subject, ours, qsd, random_4k};
use crate::client::starter::Node;

/// What the image holds: it should stay in the page cache.
const BYTES_MAX: u64 = 256 << 20;
/// A limit that nobody reaches, for a throttle that counts nevertheless.
pub(in crate::bench) const FAR_GROUP: &str = "throttle-group,id=far,limits.iops-total=1000000000";

pub(super) const ROWS: &[Named] = &[(
    "idle filters on qcow2, page cache 4k randread QD32, one CPU",
    idle,
)];

const THROTTLE: &str = "driver=throttle,throttle-group=far";
const COPY_ON_READ: &str = "driver=copy-on-read";
const FOUR: [&str; 4] = [COPY_ON_READ, "driver=compress", THROTTLE, THROTTLE];

/// Four filters on a qcow2 image; the daemon has [`FAR_GROUP`].
pub(in crate::bench) fn four_filters(path: &Path) -> Node {
    // Whatever carries out the I/O: instructions are counted on the thread pool.
    filtered(path, &FOUR, "")
}

/// Copy-before-write above a file: once all of it has been written, there is nothing left to copy.
pub(in crate::bench) fn copied(path: &Path, bytes: u64, file_options: &str) -> Node {
    let path = path.display();
    Node::Graph(vec![
        format!("driver=file,node-name=file,filename={path}{file_options}"),
        format!("driver=null-co,node-name=target,size={bytes}"),
        "driver=copy-before-write,node-name=n0,file=file,target=target".to_owned(),
    ])
}

/// [`ours`] or [`qsd`].
type Make = fn(&'static str, Node, &'static str, u16) -> Contender;

/// `n0` is the last of these filters, each given as options without name and child, on a qcow2 image.
fn filtered(path: &Path, filters: &[&str], file_options: &str) -> Node {
    let path = path.display();
    let mut nodes = vec![format!(
        "driver=file,node-name=file,filename={path}{file_options}"
    )];
    let names = ["a", "b", "c", "d"];
    let mut below = "file";
    for (n, filter) in ["driver=qcow2"].iter().chain(filters).enumerate() {
        let name = if n == filters.len() { "n0" } else { names[n] };
        nodes.push(format!("{filter},node-name={name},file={below}"));
        below = name;
    }
    Node::Graph(nodes)
}

fn idle(subject: &Subject<'_>) -> io::Result<Plan> {
    let dir = TempDir::new()?;
    let bytes = subject.file_bytes.min(BYTES_MAX);
    let filled = super::filled_file(dir.path(), bytes)?;
    // Copy-on-read writes, so everybody has an image of his own; there is nothing below it to copy.
    let image = |name: &str| -> io::Result<PathBuf> {
        // A comma in a file name would end the option.
        let path = dir.path().join(name.replace([',', ' '], "_"));
        images::converted(&filled, &path)?;
        Ok(path)
    };
    let entry = |make: Make, name: &'static str, filters: &[&str]| -> io::Result<Contender> {
        let node = filtered(&image(name)?, filters, ",aio=io_uring");
        Ok(make(name, node, "", 1).object(FAR_GROUP))
    };
    let contenders = vec![
        entry(ours, "virtioblkd, none", &[])?,
        entry(ours, "virtioblkd, throttle", &[THROTTLE])?,
        entry(ours, "virtioblkd, copy-on-read", &[COPY_ON_READ])?,
        entry(ours, "virtioblkd, four filters", &FOUR)?,
        entry(qsd, "QSD, none", &[])?,
        entry(qsd, "QSD, four filters", &FOUR)?,
    ];
    let within_a_tenth = |line| Goal::new(Figure::Cpu, line, 0, Bound::AtMost(1.1));
    Ok(Plan {
        load: random_4k(32, Direction::Read, bytes),
        contenders,
        reference: 0,
        cpus: Cpus::One,
        goals: (1..=3).map(within_a_tenth).collect(),
        _images: Some(dir),
    })
}
