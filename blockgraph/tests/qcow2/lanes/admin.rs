//! Snapshots made and deleted and sizes changed in a world: begun on a lane like a request, and what must be so at their end.

use super::support::history::{Change, Moment, NEVER, Sector, Sure, has_no_part, is_of_one_moment};
use super::support::sectors::{SECTOR, Version, versions};
use super::support::{Bench, sim};
use super::world::{ROOM, World};
use blockgraph::driver::qcow2::format::snapshot_table::Taken;
use blockgraph::driver::qcow2::snapshot::NewSnapshot;
use blockgraph::driver::qcow2::{Options, Qcow2};
use blockgraph::graph::Body;
use blockgraph::io::Io;
use blockgraph::request::Prealloc;
use blockgraph::{Mode, NodeId, Outcome};
use ring::Errno;
use ring::sim::{Disk, Weather};

/// A change of the image as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    Create(String),
    Delete(String),
    /// To so many sectors.
    Resize(usize, Prealloc),
}

/// The ways in which a larger disk may have its space set aside.
pub const PREALLOCATIONS: [Prealloc; 4] = [
    Prealloc::Off,
    Prealloc::Metadata,
    Prealloc::Falloc,
    Prealloc::Full,
];

/// A snapshot that was made, and what is in it.
#[derive(Clone, Debug)]
pub struct Kept {
    pub name: String,
    pub content: Vec<Version>,
}

/// What carries this token is the change of the image as a whole.
pub const ADMIN: u64 = 1 << 61;

impl World {
    pub fn admin_token(&self) -> Option<u64> {
        self.admin.is_some().then_some(ADMIN)
    }

    /// Begins a change of the image as a whole on a lane.
    pub fn begin(&mut self, lane: usize, admin: Admin) {
        assert!(self.admin.is_none());
        let begun = self.tick();
        if let Admin::Resize(to, _) = admin {
            self.cutting(to, begun);
        }
        self.admin = Some((admin.clone(), begun));
        let bench = &mut self.lanes[lane];
        bench.lane.begin_batch();
        bench.lane.end_batch();
        let graph = bench.current.get();
        let Some(Body::Driver(driver)) = graph.node(self.node).map(|node| node.body().clone())
        else {
            panic!("a driver");
        };
        bench.lane.spawn(self.node, ADMIN, move |io| async move {
            carry_out(driver.as_qcow2().expect("an image"), &io, admin).await
        });
    }

    /// What is cut off reads as zeroes, or as if it had never been written, or as before, until it is gone.
    fn cutting(&mut self, to: usize, begun: Moment) {
        for n in to..self.sectors.len() {
            for version in [0, self.shown_from_below(n)] {
                self.sectors[n].0.push(Change {
                    token: ADMIN,
                    version,
                    sure: Sure::Perhaps,
                    begun,
                    ended: NEVER,
                    through: false,
                });
            }
        }
    }

    pub fn admin_ended(&mut self, outcome: Outcome) {
        let now = self.tick();
        let (admin, begun) = self.admin.take().expect("under way");
        assert!(
            self.errors || outcome.is_ok(),
            "{}: {admin:?}: {outcome:?}",
            self.name
        );
        self.failed += usize::from(outcome.is_err());
        // A disk that has that size already is left alone.
        let is_change = !matches!(admin, Admin::Resize(to, _) if to == self.sectors.len());
        if outcome.is_ok() && is_change {
            self.flushed = self.flushed.max(begun);
        }
        match admin {
            Admin::Create(name) => self.created(name, (begun, now), outcome),
            Admin::Delete(name) => match outcome {
                Ok(()) => self.kept.retain(|kept| kept.name != name),
                Err(_) => {
                    let there = self.names_now();
                    self.kept.retain(|kept| there.contains(&kept.name));
                }
            },
            Admin::Resize(to, _) => self.resized(to, outcome),
        }
    }

    fn resized(&mut self, to: usize, outcome: Outcome) {
        let now = self.now;
        let info = self.lanes[0].current.get().info(self.node).expect("there");
        let size = (info.size_bytes / SECTOR as u64) as usize;
        assert!(size == to || (outcome.is_err() && size == self.sectors.len()));
        self.sectors.resize(size, Sector::zero());
        self.resized += u64::from(outcome.is_ok());
        for change in self.sectors.iter_mut().flat_map(|sector| &mut sector.0) {
            if change.token == ADMIN {
                change.ended = change.ended.min(now);
            }
        }
    }

    fn created(&mut self, name: String, during: (Moment, Moment), outcome: Outcome) {
        if outcome.is_err() && !self.names_now().contains(&name) {
            return;
        }
        let left = sim::disk(self.disk.images(), ROOM, 1, Weather::CALM);
        let content = snapshot(&left, &name, &self.name);
        self.is_one(&content, during);
        self.kept.push(Kept { name, content });
    }

    /// That is what a snapshot made meanwhile may hold.
    pub fn is_one(&self, content: &[Version], during: (Moment, Moment)) {
        assert_eq!(content.len(), self.sectors.len(), "{}", self.name);
        let wrong = is_of_one_moment(&self.sectors, content, during);
        let wrong = wrong.and_then(|()| has_no_part(&self.sectors, content));
        assert_eq!(wrong, Ok(()), "{}: a snapshot", self.name);
    }

    /// The snapshots that the file says there are, live.
    fn names_now(&self) -> Vec<String> {
        let left = sim::disk(self.disk.images(), ROOM, 1, Weather::CALM);
        let (mut bench, file) = sim::bench(&left, Mode::Fast);
        let node = sim::open(&mut bench, file, Options::default());
        names(&mut bench, node)
    }
}

async fn carry_out(image: &Qcow2, io: &Io, admin: Admin) -> Outcome {
    let words = match admin {
        Admin::Create(name) => {
            let taken = Taken::default();
            let made = image.create_snapshot(io, NewSnapshot { name, taken }).await;
            made.map(drop).map_err(|failure| failure.to_string())
        }
        Admin::Delete(name) => {
            let deleted = image.delete_snapshot(io, &name).await;
            deleted.map_err(|failure| failure.to_string())
        }
        Admin::Resize(sectors, how) => {
            let size_bytes = (sectors * SECTOR) as u64;
            let resized = image.resize(io, size_bytes, how).await;
            resized.map_err(|failure| failure.to_string())
        }
    };
    words.map_err(|words| {
        println!("refused: {words}");
        Errno::IO
    })
}

/// The names of an open image's snapshots.
pub fn names(bench: &mut Bench, node: NodeId) -> Vec<String> {
    let table = sim::with(bench, node, async |image, io| image.snapshots(io).await);
    let table = table.expect("read").into_iter();
    table
        .map(|snapshot| String::from_utf8(snapshot.name).expect("text"))
        .collect()
}

/// What a snapshot of the image on a disk holds.
pub fn snapshot(disk: &Disk, name: &str, what: &str) -> Vec<Version> {
    let (mut bench, file) = sim::bench(disk, Mode::Fast);
    let options = Options {
        snapshot: Some(name.to_owned()),
        ..Options::default()
    };
    let node = sim::open(&mut bench, file, options);
    let size = bench.current.get().info(node).expect("open").size_bytes;
    let bytes = bench.read(node, 0, size as usize);
    versions(0, &bytes, what)
}
