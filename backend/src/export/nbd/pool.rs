//! Memory for data, used again by the same connection: fresh memory costs more than the data that passes through it.
//!
//! The rule: what comes back has seen nothing but the same client's data of the same export.

use ring::Mem;

/// The smallest piece handed out.
const PIECE_BYTES_MIN: usize = 4 << 10;
/// Larger ones are not kept.
const PIECE_BYTES_MAX: usize = 2 << 20;
/// As much is kept.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// A window on memory of the pool.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    /// The window: as long as was asked for.
    pub(super) mem: Mem,
    /// All of the memory, for the pool.
    pub(super) memory: Mem,
}

impl Lease {
    /// No memory at all.
    pub(super) fn nothing() -> Lease {
        Lease {
            mem: Mem::none(),
            memory: Mem::none(),
        }
    }
}

/// Memory that waits to be used again.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Vec<Mem>,
    bytes: usize,
}

impl Pool {
    /// Memory of that length; `None` if there is none. What is in it is of no meaning.
    pub(super) fn take(&mut self, len: usize) -> Option<Lease> {
        if len == 0 {
            return Some(Lease::nothing());
        }
        let size = match len {
            ..=PIECE_BYTES_MAX => len.next_power_of_two().max(PIECE_BYTES_MIN),
            _ => len,
        };
        let memory = match self.free.iter().rposition(|mem| mem.len() == size) {
            Some(at) => {
                self.bytes -= size;
                self.free.swap_remove(at)
            }
            None => Mem::zeroed(size)?,
        };
        let mem = memory.slice(0, len);
        Some(Lease { mem, memory })
    }

    /// Takes memory back that nobody reads or writes any more.
    pub(super) fn put(&mut self, memory: Mem) {
        let size = memory.len();
        let kept = (PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&size) && size.is_power_of_two();
        if kept && self.bytes + size <= KEPT_BYTES_MAX {
            self.bytes += size;
            self.free.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_not_kept_without_bound() {
        let mut pool = Pool::default();
        let lease = pool.take(5000).expect("memory");
        assert_eq!((lease.mem.len(), lease.memory.len()), (5000, 8192));
        lease.mem.store(0, b"mine");
        pool.put(lease.memory);
        let again = pool.take(6000).expect("memory");
        let mut seen = [0; 4];
        again.mem.load(0, &mut seen);
        assert_eq!(&seen, b"mine");
        for _ in 0..10 {
            pool.put(Mem::zeroed(PIECE_BYTES_MAX).expect("memory"));
        }
        assert_eq!(pool.bytes, KEPT_BYTES_MAX);
    }
}
