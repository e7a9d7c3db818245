//! What an earlier process had changed of the map in memory, done again from its log.
//!
//! The rule: the log says which host clusters were handed out and written; nothing on disk refers to them yet, or a commit
//! that was cut short has begun to. So they are claimed where they are, before anything else is handed out. Done twice, it
//! comes to the same.

use super::Qcow2;
use super::format::entry::{DataIn, L2Entry, Malformed};
use super::map_log::Change;
use super::meta::Why;
use crate::io::Io;
use crate::units::Span;
use ring::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// Why a log cannot be done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// What it refers to may have been handed out again.
    #[error("the image was written to before")]
    Written,
    /// It is another image's, or damaged.
    #[error("host cluster at {0:#x} cannot be a guest's")]
    Host(u64),
    /// It is damaged.
    #[error("the map's words for guest cluster {0} are impossible")]
    Words(u64),
    /// The image.
    #[error("{0}")]
    Image(#[from] Errno),
}

/// Entries as the log has them last, by guest cluster.
type Last = BTreeMap<u64, L2Entry>;

impl Qcow2 {
    /// Brings the disk to where the log says that an earlier process had it, durably, before anything else is changed.
    /// Returns how many clusters were behind. Errors: see [`ReplayError`]; nothing was changed but by an error of the file.
    pub async fn replay(&self, io: &Io, changes: &[Change]) -> Result<usize, ReplayError> {
        if changes.is_empty() {
            return Ok(0);
        }
        self.open_for_writing(io).await?;
        let _stopped = self.traffic.stop().await;
        let everything = Span {
            at: 0,
            len: i64::MAX as u64,
        };
        let _all = self.holds.hold(everything).await;
        io.grace().await;
        if !self.is_untouched() {
            return Err(ReplayError::Written);
        }
        let last = self.last_of_each(io, changes)?;
        let behind = self.behind(io, last).await?;
        self.claim_hosts(io, &behind).await?;
        for (cluster, (_, entry)) in &behind {
            self.set_entry(io, *cluster, *entry).await?;
        }
        self.commit(io).await?;
        Ok(behind.len())
    }

    fn is_untouched(&self) -> bool {
        let meta = self.meta();
        !meta.alloc.knows_end() && !meta.is_ahead() && meta.freed.is_empty()
    }

    /// Compressed clusters are durable before their writers hear of them: what the log has of such was not heard of. What is
    /// beyond the disk was set aside for one that never became so large.
    fn last_of_each(&self, io: &Io, changes: &[Change]) -> Result<Last, ReplayError> {
        let clusters = self.disk_bytes().div_ceil(self.geometry.cluster_bytes());
        let mut last = Last::new();
        for Change { cluster, words } in changes {
            if *cluster >= clusters {
                continue;
            }
            let entry = self.geometry.layout().decode(*words);
            let entry = entry.map_err(|_: Malformed| ReplayError::Words(*cluster))?;
            if !matches!(entry, L2Entry::Compressed { .. }) {
                last.insert(*cluster, entry);
            }
        }
        // Where earlier ones were may be something else by now, if this was begun before.
        let file_bytes = io.graph().info(self.data(io)?).map(|info| info.size_bytes);
        for host in last.values().filter_map(|entry| entry.host_cluster()) {
            self.check_host(host, file_bytes.unwrap_or(0))?;
        }
        Ok(last)
    }

    fn check_host(&self, host: u64, file_bytes: u64) -> Result<(), ReplayError> {
        let cluster = self.geometry.cluster_bytes();
        let in_file = host
            .checked_add(cluster)
            .is_some_and(|end| end <= file_bytes);
        match self.geometry.layout().data {
            DataIn::DataFile => Ok(()),
            DataIn::Image if in_file && self.may_write(host, cluster) => Ok(()),
            DataIn::Image => Err(ReplayError::Host(host)),
        }
    }

    /// Those of which the disk has something else: what it has, and what it should.
    async fn behind(
        &self,
        io: &Io,
        last: Last,
    ) -> Result<BTreeMap<u64, (L2Entry, L2Entry)>, ReplayError> {
        let mut behind = BTreeMap::new();
        let mut hosts = BTreeSet::new();
        for (cluster, wanted) in last {
            let at = self
                .geometry
                .entry_at(cluster << self.geometry.cluster_bits());
            let words = self.slice(io, at.slice).await?.entry(at.index);
            let there = self.geometry.layout().decode(words);
            let there = there.map_err(|_| ReplayError::Words(cluster))?;
            if there == wanted {
                continue;
            }
            if let Some(host) = claimed(there, wanted)
                && !hosts.insert(host)
            {
                return Err(ReplayError::Host(host));
            }
            behind.insert(cluster, (there, wanted));
        }
        Ok(behind)
    }

    async fn claim_hosts(
        &self,
        io: &Io,
        behind: &BTreeMap<u64, (L2Entry, L2Entry)>,
    ) -> Result<(), ReplayError> {
        if self.geometry.layout().data == DataIn::DataFile {
            return Ok(());
        }
        let bits = self.geometry.cluster_bits();
        let hosts = behind
            .values()
            .filter_map(|(there, wanted)| claimed(*there, *wanted));
        let hosts: BTreeSet<u64> = hosts.map(|host| host >> bits).collect();
        let Some(end) = hosts.last().map(|last| last + 1) else {
            return Ok(());
        };
        self.begin_allocating(io).await?;
        // Whatever is handed out from here on is none of them.
        self.meta().alloc.skip_to(end);
        for host in hosts {
            self.meet(io, |meta| meta.alloc.claim_again(host, &mut meta.refs))
                .await?;
        }
        Ok(())
    }

    async fn set_entry(&self, io: &Io, cluster: u64, entry: L2Entry) -> Result<(), ReplayError> {
        let at = self
            .geometry
            .entry_at(cluster << self.geometry.cluster_bits());
        self.own_table(io, self.geometry.l1_index(at.slice)).await?;
        let slot = self.slice(io, at.slice).await?;
        let mut meta = self.meta();
        meta.dirty.insert(at.slice);
        let replaced = self.replace(&mut meta, &slot, at.index, Why::Other, |_| entry);
        Ok(replaced.map_err(|_| Errno::IO)?)
    }
}

/// The host cluster that an entry has and the one before had not.
fn claimed(there: L2Entry, wanted: L2Entry) -> Option<u64> {
    let host = wanted.host_cluster()?;
    (there.host_cluster() != Some(host)).then_some(host)
}
