//! A guest: memory, a front end and running rings, and the polite way to use them.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::blk::{Done, Request, Table, UNTOUCHED, Where};
use super::crate_front::CrateFront;
use super::deadline;
use super::front::{
    Agreed, FrontEnd, GUEST_FEATURES, Habits, Inflight, RingAddresses, Speaker, feature, negotiate,
    protocol,
};
use super::memory::{BORDER, HIGH, Memory, Region};
use super::ring::{Buffer, DESC_BYTES, Place, Ring, Suppression, table_of};
use super::wire::Wire;

/// Which front end speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Ours, in the order of a VMM.
    Ours(Habits),
    /// The `vhost` crate's, in cloud-hypervisor's order.
    VhostCrate,
}

impl Client {
    /// Every front end that drives our own rings.
    pub const ALL: [Client; 3] = [
        Client::Ours(Habits::Qemu),
        Client::Ours(Habits::CloudHypervisor),
        Client::VhostCrate,
    ];

    /// Whose habits it follows.
    pub fn habits(self) -> Habits {
        match self {
            Client::Ours(habits) => habits,
            Client::VhostCrate => Habits::CloudHypervisor,
        }
    }

    fn connect(self, socket: &Path) -> io::Result<Box<dyn FrontEnd>> {
        Ok(match self {
            Client::Ours(habits) => Box::new(Speaker::connect(socket, habits)?),
            Client::VhostCrate => Box::new(CrateFront::connect(socket)?),
        })
    }
}

/// In which order the memory table is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TableOrder {
    /// Ascending guest addresses in one SET_MEM_TABLE.
    #[default]
    Sorted,
    /// One SET_MEM_TABLE, last region first.
    Unsorted,
    /// One ADD_MEM_REG per region, last region first.
    Slots,
}

/// How a guest is set up.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Which front end.
    pub client: Client,
    /// Rings to start.
    pub queues: u16,
    /// Descriptors in each.
    pub ring_size: u16,
    /// Virtio features to take where offered.
    pub features: u64,
    /// How memory is announced.
    pub table: TableOrder,
    /// Bytes of the high region, where data goes.
    pub data_bytes: u64,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            client: Client::Ours(Habits::Qemu),
            queues: 1,
            ring_size: 128,
            features: GUEST_FEATURES,
            table: TableOrder::Sorted,
            data_bytes: 16 << 20,
        }
    }
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
pub struct Pending {
    /// The chain's head.
    pub head: u16,
    in_gpa: u64,
    in_len: u32,
}

impl Pending {
    /// Where its status byte goes.
    pub fn status(&self) -> u64 {
        self.in_gpa + u64::from(self.in_len)
    }
}

/// A connected guest with running rings.
#[derive(Debug)]
pub struct Guest {
    /// The front end; a table may say anything through it.
    pub front: Box<dyn FrontEnd>,
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// The queues.
    pub rings: Vec<Ring>,
    /// What was negotiated.
    pub agreed: Agreed,
    /// How it was set up.
    pub setup: Setup,
    /// What the back end gave to be kept for the next one, if it can.
    pub inflight: Option<Inflight>,
    scratch: u64,
}

impl Guest {
    /// Connects, negotiates, announces memory and starts the rings.
    pub fn start(socket: &Path, setup: Setup) -> io::Result<Guest> {
        let mut guest = Guest::connect(socket, setup)?;
        guest.begin()?;
        Ok(guest)
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.agreed.protocol & protocol::INFLIGHT_SHMFD != 0 {
            let inflight = match self.inflight.take() {
                Some(inflight) => inflight,
                None => {
                    let Setup {
                        queues, ring_size, ..
                    } = self.setup;
                    self.front.get_inflight(queues, ring_size)?
                }
            };
            self.front.set_inflight(&inflight)?;
            self.inflight = Some(inflight);
        }
        self.announce_memory()?;
        self.start_rings()
    }

    /// Another back end takes over from one that is gone, with the rings as that has left them.
    pub fn reconnect(&mut self, socket: &Path) -> io::Result<()> {
        let client = self.setup.client;
        let mut front = client.connect(socket)?;
        self.agreed = negotiate(front.as_mut(), client.habits(), self.setup.features)?;
        self.front = front;
        self.begin()
    }

    /// Connects and negotiates; memory and rings exist but the back end has not heard of them.
    pub fn connect(socket: &Path, setup: Setup) -> io::Result<Guest> {
        let mut front = setup.client.connect(socket)?;
        let agreed = negotiate(front.as_mut(), setup.client.habits(), setup.features)?;
        let memory = Arc::new(Memory::new(setup.data_bytes)?);
        let mut at = 0x1000;
        let mut rings = Vec::new();
        for index in 0..u32::from(setup.queues) {
            let (place, end) = Place::packed_at(at, setup.ring_size);
            let mut ring = Ring::new(&memory, index, setup.ring_size, place)?;
            if agreed.features & feature::EVENT_IDX != 0 {
                ring.set_suppression(Suppression::EventIdx);
            }
            rings.push(ring);
            at = end.next_multiple_of(4096);
        }
        Ok(Guest {
            front,
            memory,
            rings,
            agreed,
            setup,
            inflight: None,
            scratch: HIGH,
        })
    }

    /// SET_FEATURES as QEMU does at start, then the memory table.
    pub fn announce_memory(&mut self) -> io::Result<()> {
        self.front.set_features(self.agreed.features)?;
        let mut regions: Vec<Region> = self.memory.regions().to_vec();
        if self.setup.table != TableOrder::Sorted {
            regions.reverse();
        }
        match self.setup.table {
            TableOrder::Slots => regions.iter().try_for_each(|r| self.front.add_mem_reg(r)),
            TableOrder::Sorted | TableOrder::Unsorted => self.front.set_mem_table(&regions),
        }
    }

    /// Starts every ring where its driver stands.
    pub fn start_rings(&mut self) -> io::Result<()> {
        (0..self.rings.len()).try_for_each(|i| self.describe_ring(i))?;
        (0..self.rings.len() as u32).try_for_each(|i| self.front.set_vring_enable(i, 1))
    }

    /// Size, base, addresses and eventfds of one ring.
    pub fn describe_ring(&mut self, index: usize) -> io::Result<()> {
        let ring = &self.rings[index];
        let queue = ring.index;
        let at = RingAddresses {
            desc: self.memory.user(ring.place.desc),
            used: self.memory.user(ring.place.used),
            avail: self.memory.user(ring.place.avail),
        };
        self.front.set_vring_num(queue, ring.size)?;
        match self.setup.client.habits() {
            Habits::Qemu => {
                // What the device told the guest, of whom the front end knows no more.
                self.front.set_vring_base(queue, ring.used_idx())?;
                self.front.set_vring_addr(queue, at)?;
                self.front.set_vring_kick(queue, &ring.kick_fd)?;
                self.front.set_vring_call(queue, &ring.call_fd)?;
            }
            Habits::CloudHypervisor => {
                self.front.set_vring_addr(queue, at)?;
                self.front.set_vring_base(queue, ring.last_used())?;
                self.front.set_vring_call(queue, &ring.call_fd)?;
                self.front.set_vring_kick(queue, &ring.kick_fd)?;
            }
        }
        self.front.set_vring_err(queue, &ring.err_fd)
    }

    /// Stops every ring the way a VMM does and returns the bases.
    pub fn stop_rings(&mut self) -> io::Result<Vec<u32>> {
        let queues = self.rings.len() as u32;
        (0..queues).try_for_each(|i| self.front.set_vring_enable(i, 0))?;
        (0..queues).map(|i| self.front.get_vring_base(i)).collect()
    }

    /// The connection, which every front end of ours has.
    pub fn wire(&self) -> &Wire {
        self.front.wire().expect("a front end of ours")
    }

    /// Lays a request out in memory and offers it, unpublished.
    pub fn add(&mut self, queue: usize, request: &Request) -> Pending {
        let out = request.out_stream();
        let (out_gpa, in_gpa) = self.place(request, out.len() as u64);
        self.memory.write(out_gpa, &out);
        self.memory
            .write(in_gpa, &vec![UNTOUCHED; request.in_bytes() as usize]);
        let buffers = request.buffers(out_gpa, in_gpa);
        let head = self
            .offer(queue, &buffers, request.layout.table)
            .expect("room in the ring");
        Pending {
            head,
            in_gpa,
            in_len: request.in_len,
        }
    }

    /// Offers a chain of these buffers.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer], table: Table) -> Option<u16> {
        if table == Table::Direct {
            return self.rings[queue].add(buffers);
        }
        let direct = if table == Table::Mixed { 1 } else { 0 };
        let (first, rest) = buffers.split_at(direct);
        let at = self.take(rest.len() as u64 * DESC_BYTES as u64);
        let bytes: Vec<u8> = table_of(rest).iter().flat_map(|d| d.bytes()).collect();
        self.memory.write(at, &bytes);
        self.rings[queue].add_then_indirect(first, at, rest.len())
    }

    /// Scratch memory in the high region; it starts over when it is used up.
    pub fn take(&mut self, len: u64) -> u64 {
        let end = HIGH + self.setup.data_bytes;
        if self.scratch + len > end {
            self.scratch = HIGH;
        }
        let at = self.scratch;
        assert!(at + len <= end, "a buffer of {len} bytes");
        self.scratch = (at + len).next_multiple_of(512).min(end);
        at
    }

    fn place(&mut self, request: &Request, out_len: u64) -> (u64, u64) {
        let in_len = u64::from(request.in_bytes());
        match request.layout.place {
            Where::High => (self.take(out_len), self.take(in_len)),
            Where::Border if request.payload.is_empty() => {
                (self.take(out_len), BORDER - in_len / 2)
            }
            Where::Border => (BORDER - out_len / 2, self.take(in_len)),
        }
    }

    /// Publishes what was added to a queue and kicks if asked to.
    pub fn submit(&mut self, queue: usize) {
        self.rings[queue].submit();
    }

    /// Waits for the completion of this very request; others that finish first are an error.
    pub fn finish(&mut self, queue: usize, pending: Pending) -> io::Result<Done> {
        let until = deadline();
        self.finish_until(queue, pending, until)
    }

    /// The same with a deadline of one's own.
    pub fn finish_until(
        &mut self,
        queue: usize,
        pending: Pending,
        until: Instant,
    ) -> io::Result<Done> {
        let ring = &mut self.rings[queue];
        ring.wait(until)?;
        let used = ring
            .pop()
            .ok_or_else(|| io::Error::other("the used index ran backwards"))?;
        if used.id != u32::from(pending.head) {
            return Err(io::Error::other(format!(
                "completed {used:?}, expected head {}",
                pending.head
            )));
        }
        Ok(self.done(pending, used.len))
    }

    /// What lies in memory for a completed request.
    pub fn done(&self, pending: Pending, used_len: u32) -> Done {
        let mut data = self
            .memory
            .read(pending.in_gpa, pending.in_len as usize + 1);
        let status = data.pop().expect("a status byte");
        Done {
            status,
            used_len,
            data,
        }
    }

    /// Submits one request and waits for it.
    pub fn run(&mut self, queue: usize, request: &Request) -> io::Result<Done> {
        let pending = self.add(queue, request);
        self.submit(queue);
        self.finish(queue, pending)
    }

    /// Submits many at once with at most one kick and waits for all, in whatever order they finish.
    pub fn run_batch(&mut self, queue: usize, requests: &[Request]) -> io::Result<Vec<Done>> {
        let pending: Vec<Pending> = requests.iter().map(|r| self.add(queue, r)).collect();
        self.submit(queue);
        let mut done: Vec<Option<Done>> = vec![None; requests.len()];
        let until = deadline();
        for _ in requests {
            self.rings[queue].wait(until)?;
            let used = self.rings[queue]
                .pop()
                .ok_or_else(|| io::Error::other("the used index ran backwards"))?;
            let which = pending.iter().position(|p| u32::from(p.head) == used.id);
            let which =
                which.ok_or_else(|| io::Error::other(format!("nobody asked for {used:?}")))?;
            done[which] = Some(self.done(pending[which], used.len));
        }
        done.into_iter()
            .map(|d| d.ok_or_else(|| io::Error::other("a chain was completed twice")))
            .collect()
    }
}
