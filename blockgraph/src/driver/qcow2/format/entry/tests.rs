use super::*;
use proptest::prelude::*;

const PLAIN: Layout = Layout {
    cluster_bits: 16,
    words: Words::One,
    data: DataIn::Image,
    zero_flag: ZeroFlag::Known,
};
const EXTENDED: Layout = Layout {
    words: Words::Two,
    ..PLAIN
};
const DATA_FILE: Layout = Layout {
    data: DataIn::DataFile,
    ..PLAIN
};

fn layouts() -> impl Strategy<Value = Layout> {
    let any_words = prop_oneof![Just(Words::One), Just(Words::Two)];
    let any_data = prop_oneof![Just(DataIn::Image), Just(DataIn::DataFile)];
    let any_zero = prop_oneof![Just(ZeroFlag::Known), Just(ZeroFlag::Unknown)];
    (
        CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX,
        any_words,
        any_data,
        any_zero,
    )
        .prop_map(|(cluster_bits, words, data, zero_flag)| Layout {
            cluster_bits,
            words,
            data,
            zero_flag,
        })
}

/// Words that are often nearly right.
fn word() -> impl Strategy<Value = u64> {
    let offset = (any::<u64>(), 9u32..56).prop_map(|(bits, low)| bits >> 8 >> low << low);
    let top = prop_oneof![Just(0), Just(COPIED), Just(COMPRESSED), any::<u64>()];
    let low = prop_oneof![3 => Just(0u64), 1 => Just(ZERO), 1 => 0u64..512];
    prop_oneof![
        (offset, top, low).prop_map(|(offset, top, low)| offset | top | low),
        any::<u64>()
    ]
}

proptest! {
    #[test]
    fn what_decodes_encodes_to_an_entry_that_decodes_the_same(layout in layouts(), a in word(), b in any::<u64>()) {
        for second in [0, b, b & !(b << 32) & !(b >> 32), u64::from(u32::MAX), !u64::from(u32::MAX)] {
            let Ok(entry) = layout.decode([a, second]) else { continue };
            let words = layout.encode(entry);
            prop_assert_eq!(layout.decode(words), Ok(entry));
        }
    }

    #[test]
    fn a_glance_finds_what_decoding_does_or_nothing(layout in layouts(), a in word(), b in any::<u64>()) {
        for first in [a, a & !ZERO, 0] {
            for second in [0, b, u64::from(u32::MAX), !u64::from(u32::MAX)] {
                let words = [first, second];
                if let Some(entry) = layout.glance(words) {
                    prop_assert_eq!(layout.decode(words), Ok(entry));
                }
            }
        }
    }

    #[test]
    fn data_and_nothing_are_seen_at_a_glance(layout in layouts(), at in 1u64..1 << 30, copied in any::<bool>()) {
        let data = L2Entry::Data { host: at << layout.cluster_bits, copied };
        let seen = (layout.data == DataIn::Image).then_some(data);
        prop_assert_eq!(layout.glance(layout.encode(data)), seen);
        prop_assert_eq!(layout.glance([0, 0]), Some(L2Entry::Unallocated));
    }

    #[test]
    fn parts_cover_a_cluster_without_gap_and_never_leave_it(layout in layouts(), a in word(), b in any::<u64>(), from in any::<u64>()) {
        let Ok(entry) = layout.decode([a, b]) else { return Ok(()) };
        let cluster = 1u64 << layout.cluster_bits;
        let mut within = from % cluster;
        for _ in 0..=SUBCLUSTERS {
            if within == cluster { break }
            let (_, len) = entry.part(within, layout.cluster_bits);
            prop_assert!(len > 0 && within + len <= cluster);
            within += len;
        }
        prop_assert_eq!(within, cluster);
    }

    #[test]
    fn l1_entries_survive_the_round_trip(word in word(), bits in CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX) {
        if let Ok(entry) = L1Entry::decode(word, bits) {
            prop_assert_eq!(entry.encode(), word);
        }
    }
}

#[test]
fn standard_entries_are_what_the_specification_says() {
    let decode = |word| PLAIN.decode([word, 0]);
    assert_eq!(decode(0), Ok(L2Entry::Unallocated));
    assert_eq!(decode(1), Ok(L2Entry::Zero));
    let (host, copied) = (0x50000, true);
    assert_eq!(decode(COPIED | host), Ok(L2Entry::Data { host, copied }));
    assert_eq!(
        decode(COPIED | host | 1),
        Ok(L2Entry::ZeroPrealloc { host, copied })
    );
    let copied = false;
    assert_eq!(decode(host), Ok(L2Entry::Data { host, copied }));
    assert_eq!(decode(COPIED), Err(Malformed::NoOffset(COPIED)));
    assert_eq!(decode(0x50200), Err(Malformed::Unaligned(0x50200)));
    assert_eq!(decode(0x50002), Err(Malformed::Reserved(0x50002)));
    let high = 1 << 56 | host;
    assert_eq!(decode(high), Err(Malformed::Reserved(high)));
}

#[test]
fn a_compressed_cluster_ends_where_its_last_sector_does() {
    // 64 KiB clusters: 54 bits of offset, 8 of additional sectors.
    let word = COMPRESSED | 3 << 54 | 0x1234;
    let entry = L2Entry::Compressed {
        host: 0x1234,
        len_bytes: 4 * 512 - 0x34,
    };
    assert_eq!(PLAIN.decode([word, 0]), Ok(entry));
    assert_eq!(PLAIN.encode(entry), [word, 0]);
    assert!(PLAIN.compressed_fits(0x1234, 65536) && !PLAIN.compressed_fits(1 << 54, 1));
    assert!(!PLAIN.compressed_fits(0x1ff, 256 * 512));
    assert_eq!(
        DATA_FILE.decode([word, 0]),
        Err(Malformed::CompressedInDataFile(word))
    );
    assert!(EXTENDED.decode([word, 1]).is_err());
    assert!(PLAIN.decode([word | COPIED, 0]).is_err());
}

#[test]
fn a_data_file_has_a_cluster_at_offset_0() {
    let entry = L2Entry::Data {
        host: 0,
        copied: true,
    };
    assert_eq!(DATA_FILE.decode([COPIED, 0]), Ok(entry));
    assert_eq!(DATA_FILE.encode(entry), [COPIED, 0]);
    assert_eq!(DATA_FILE.decode([0, 0]), Ok(L2Entry::Unallocated));
}

#[test]
fn subclusters_are_runs_of_their_kind() {
    let bitmap = 0x0000_0f00_0000_00f0;
    let entry = EXTENDED.decode([COPIED | 0x50000, bitmap]).expect("valid");
    // Subclusters of 2 KiB: 0-3 below, 4-7 data, 8-11 zeroes, the rest below.
    let part = |within| entry.part(within, 16);
    let below = |host| Part::Below { host: Some(host) };
    let (host, copied) = (0x52000, true);
    assert_eq!(part(0), (below(0x50000), 8192));
    assert_eq!(part(8191), (below(0x51fff), 1));
    assert_eq!(part(8192), (Part::Data { host, copied }, 8192));
    let host = Some(0x54000);
    assert_eq!(part(16384), (Part::Zero { host }, 8192));
    assert_eq!(part(24576), (below(0x56000), 40960));
}

#[test]
fn impossible_subclusters_are_refused() {
    let decode = |entry, bitmap| EXTENDED.decode([entry, bitmap]);
    assert!(decode(COPIED | 0x50000, 1 << 32 | 1).is_err());
    assert!(decode(0, 1).is_err());
    assert!(decode(1, 0).is_err());
    assert_eq!(decode(0, u64::MAX << 32), Ok(L2Entry::Zero));
}

#[test]
fn version_2_has_no_zero_clusters() {
    let layout = Layout {
        zero_flag: ZeroFlag::Unknown,
        ..PLAIN
    };
    assert_eq!(layout.decode([1, 0]), Err(Malformed::ZeroFlag(1)));
}
