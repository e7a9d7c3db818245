use super::super::format::entry::{DataIn, Layout, Words, ZeroFlag};
use super::*;
use ring::Mem;
use std::sync::Arc;

fn cache(words: Words, slots: usize) -> Cache {
    let layout = Layout {
        cluster_bits: 16,
        words,
        data: DataIn::Image,
        zero_flag: ZeroFlag::Known,
    };
    Cache::new(Geometry::new(layout, 12), slots).expect("memory")
}

/// A slice as on disk: every word is `word`.
fn slice(word: u64) -> Mem {
    let mem = Mem::zeroed(4096).expect("memory");
    let bytes: Vec<u8> = (0..512).flat_map(|_| word.to_be_bytes()).collect();
    mem.store(0, &bytes);
    mem
}

fn keep(cache: &Cache, number: u64, word: u64) {
    assert!(matches!(
        cache.keep(number, Some(&slice(word))),
        View::Cached(_)
    ));
}

#[test]
fn what_is_kept_is_found_and_what_is_absent_is_zero_words() {
    let cache = cache(Words::One, 16);
    keep(&cache, 5, 0x1122_3344);
    assert_eq!(cache.lookup(5, 511), Some([0x1122_3344, 0]));
    assert_eq!(cache.lookup(6, 0), None);
    drop(cache.keep(6, None));
    assert_eq!(cache.lookup(6, 0), Some([0, 0]));
}

#[test]
fn a_cache_as_large_as_all_tables_holds_them_all() {
    let cache = cache(Words::One, 100);
    assert!(cache.slots() <= 100 && cache.slots() > 90);
    let all = 0..cache.slots() as u64;
    all.clone().for_each(|number| keep(&cache, number, number));
    assert!(
        all.clone()
            .all(|number| cache.lookup(number, 3) == Some([number, 0]))
    );
}

#[test]
fn dirty_and_held_slices_stay_and_others_make_room() {
    let cache = cache(Words::One, 2);
    keep(&cache, 0, 0);
    let dirty = cache.resident(0).expect("cached");
    dirty.set(7, [42, 0]);
    drop(dirty);
    for number in 1..20 {
        keep(&cache, number, number);
    }
    assert_eq!(cache.lookup(0, 7), Some([42, 0]));
    let held = cache.resident(19).expect("cached");
    assert!(matches!(
        cache.keep(20, Some(&slice(20))),
        View::Copy(words, 1) if words == vec![20; 512]
    ));
    let dirty = cache.resident(0).expect("cached");
    let mark = dirty.mark();
    assert_eq!(dirty.bytes(7, 1), 42u64.to_be_bytes());
    dirty.set(8, [43, 0]);
    dirty.written(mark);
    assert!(dirty.is_dirty(), "the later change is not on disk");
    dirty.written(dirty.mark());
    assert!(!dirty.is_dirty());
    drop(dirty);
    keep(&cache, 20, 20);
    assert!(cache.resident(0).is_none());
    drop(held);
}

#[test]
fn a_blank_slice_that_is_changed_is_zero_everywhere_else() {
    for words in [Words::One, Words::Two] {
        let cache = cache(words, 2);
        // Whatever was in the slots before.
        for number in 0..4 {
            keep(&cache, number, u64::MAX);
        }
        drop(cache.keep(9, None));
        assert!(cache.find(9).is_some_and(|found| found.is_blank()));
        assert_eq!(cache.lookup(9, 5), Some([0, 0]));
        let slot = cache.resident(9).expect("cached");
        assert_eq!(slot.bytes(3, 1), vec![0; slot.bytes(0, 1).len()]);
        slot.set(5, [3, 0]);
        assert!(cache.find(9).is_some_and(|found| !found.is_blank()));
        assert_eq!((slot.entry(5), slot.entry(6)), ([3, 0], [0, 0]));
        assert_eq!(cache.lookup(9, 4), Some([0, 0]));
    }
}

#[test]
fn clear_refuses_while_something_is_dirty() {
    let cache = cache(Words::Two, 16);
    keep(&cache, 3, 9);
    cache.resident(3).expect("cached").set(1, [1, 2]);
    assert!(!cache.clear());
    assert_eq!(cache.lookup(3, 1), Some([1, 2]));
    let slot = cache.resident(3).expect("cached");
    slot.written(slot.mark());
    assert!(!cache.clear(), "held");
    drop(slot);
    assert!(cache.clear());
    assert_eq!(cache.lookup(3, 1), None);
}

#[test]
fn cleaning_forgets_what_was_not_used_since() {
    let cache = cache(Words::One, 16);
    keep(&cache, 1, 1);
    keep(&cache, 2, 2);
    cache.clean();
    assert_eq!(cache.lookup(2, 0), Some([2, 0]));
    cache.clean();
    assert_eq!(cache.lookup(1, 0), None);
    assert_eq!(cache.lookup(2, 0), Some([2, 0]));
    keep(&cache, 1, 7);
    assert_eq!(cache.lookup(1, 511), Some([7, 0]));
}

#[test]
fn readers_never_see_a_mixture() {
    let cache = Arc::new(cache(Words::Two, 2));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let cache = cache.clone();
            std::thread::spawn(move || {
                let mut seen = 0;
                while seen < 2_000 {
                    for number in 0..4 {
                        let Some([first, second]) = cache.lookup(number, 5) else {
                            continue;
                        };
                        assert_eq!(first, second, "half of a change");
                        assert_eq!(first % 4, number, "another slice's words");
                        seen += 1;
                    }
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    let mut n = 0u64;
    while !readers.iter().all(|reader| reader.is_finished()) {
        n += 1;
        let number = n % 4;
        if cache.resident(number).is_none() {
            drop(cache.keep(number, Some(&slice(number))));
        }
        if let Some(slot) = cache.resident(number) {
            let word = number + 4 * n;
            slot.set(5, [word, word]);
            slot.written(slot.mark());
        }
        std::thread::yield_now();
    }
    for reader in readers {
        reader.join().expect("no mixture");
    }
}
