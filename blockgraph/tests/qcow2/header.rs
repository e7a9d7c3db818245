//! The header of a qcow2 file: written, read back, and refused field by field with the words users know.

use blockgraph::driver::qcow2::format::extensions::{BitmapsAt, Unknown};
use blockgraph::driver::qcow2::format::features::{Autoclear, Compatible, Incompatible};
use blockgraph::driver::qcow2::format::header::*;
use proptest::prelude::*;

fn plain(cluster_bits: u32) -> Header {
    let cluster = 1u64 << cluster_bits;
    let mut header = Header {
        version: Version::V3,
        cluster_bits,
        size_bytes: 64 << 20,
        l1: TableAt::default(),
        refcount_table: TableAt {
            at: cluster,
            count: 1,
        },
        refcount_order: 4,
        snapshots: TableAt::default(),
        incompatible: Incompatible::default(),
        compatible: Compatible::default(),
        autoclear: Autoclear::default(),
        compression: Compression::Zlib,
        backing: None,
        data_file: None,
        bitmaps: Bitmaps::None,
        unknown: Vec::new(),
        tail: Vec::new(),
    };
    header.l1 = TableAt {
        at: 3 * cluster,
        count: header.l1_entries_for(header.size_bytes) as u32,
    };
    header
}

fn backing(name: &str, format: Option<&str>) -> Option<Backing> {
    Some(Backing {
        name: name.into(),
        format: format.map(Into::into),
    })
}

prop_compose! {
    fn headers()(
        bits in 14u32..=21, sectors in 0u64..1 << 28, order in 0u32..=6,
        flags in any::<[bool; 6]>(), compatible in any::<u64>(), autoclear in any::<u64>(),
        snapshots in 0u32..=SNAPSHOTS_MAX, name in "[a-z/é]{1,400}",
        format in proptest::option::of("[a-z]{1,15}"),
        data_file in proptest::option::of("[a-z]{1,100}"),
        bitmaps in 1u32..=65535,
        other in proptest::collection::vec(any::<u8>(), 0..100),
        tail in proptest::collection::vec(any::<u8>(), 0..5),
    ) -> Header {
        let [has_backing, has_bitmaps, dirty, extended_l2, zstd, has_data_file] = flags;
        let cluster = 1u64 << bits;
        let mut header = plain(bits);
        header.incompatible = Incompatible {
            dirty, corrupt: false, extended_l2, compression: zstd, data_file: has_data_file,
        };
        header.size_bytes = sectors * 512;
        header.l1.count = header.l1_entries_for(header.size_bytes) as u32;
        header.refcount_order = order;
        header.snapshots = TableAt { at: cluster * 9, count: snapshots };
        header.compatible = Compatible::parse(compatible);
        header.autoclear = Autoclear::parse(autoclear);
        header.autoclear.bitmaps = has_bitmaps;
        header.autoclear.data_file_raw &= has_data_file;
        header.compression = if zstd { Compression::Zstd } else { Compression::Zlib };
        header.backing = if has_backing { backing(&name, format.as_deref()) } else { None };
        header.data_file = data_file;
        header.bitmaps = match has_bitmaps {
            true => Bitmaps::Valid(BitmapsAt { count: bitmaps, len_bytes: 1000, at: cluster * 8 }),
            false => Bitmaps::None,
        };
        header.unknown = vec![Unknown { kind: 0x1234_5678, bytes: other }];
        header.tail = tail.repeat(8);
        header
    }
}

proptest! {
    #[test]
    fn a_header_reads_back_as_it_was_written(header in headers()) {
        let bytes = header.encode().expect("fits");
        prop_assert_eq!(bytes.len() as u64, header.cluster_bytes());
        prop_assert_eq!(Header::cluster_bytes_of(&bytes[..PREFIX_BYTES]), Ok(bytes.len()));
        prop_assert_eq!(Header::parse(&bytes, Strictness::Open), Ok(header));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(
        header in headers(),
        hits in proptest::collection::vec((0usize..700, any::<u8>()), 1..12),
        len in 0usize..1 << 14,
    ) {
        let mut bytes = header.encode().expect("fits");
        for (at, byte) in hits {
            bytes[at] = byte;
        }
        let _ = Header::parse(&bytes, Strictness::Check);
        let _ = Header::parse(&bytes[..len], Strictness::Open);
    }
}

#[test]
fn the_feature_names_give_way_in_a_small_cluster() {
    let mut header = plain(9);
    header.size_bytes = 512 * 1000;
    assert_eq!(
        header.encode().expect("fits")[0x70..0x74],
        [0x68, 3, 0xf8, 0x57]
    );
    header.backing = backing("base.raw", Some("raw"));
    let bytes = header.encode().expect("fits");
    assert_eq!(bytes[0x70..0x74], [0xe2, 0x79, 0x2a, 0xca]);
    assert_eq!(Header::parse(&bytes, Strictness::Open), Ok(header.clone()));
    header.backing = backing(&"x".repeat(500), Some("raw"));
    assert_eq!(header.encode(), Err(HeaderError::DoesNotFit));
}

#[test]
fn a_version_2_header_has_no_feature_fields() {
    let mut header = plain(16);
    header.version = Version::V2;
    header.backing = backing("base.qcow2", Some("qcow2"));
    let bytes = header.encode().expect("fits");
    assert_eq!(
        bytes[72..76],
        [0xe2, 0x79, 0x2a, 0xca],
        "the first extension"
    );
    assert_eq!(Header::parse(&bytes, Strictness::Open), Ok(header));
}

/// What a field is set to, and what QEMU 10.0.2 says of it.
const REFUSED: &[(usize, &[u8], &str)] = &[
    (0, &[0; 4], "Image is not in qcow2 format"),
    (4, &[0, 0, 0, 4], "Unsupported qcow2 version 4"),
    (4, &[0, 0, 0, 1], "Unsupported qcow2 version 1"),
    (20, &[0, 0, 0, 8], "Unsupported cluster size: 2^8"),
    (20, &[0, 0, 0, 22], "Unsupported cluster size: 2^22"),
    (100, &[0, 0, 0, 96], "qcow2 header too short"),
    (100, &[0, 1, 0, 8], "qcow2 header exceeds cluster size"),
    (8, &[0, 0, 0, 0, 0, 2, 0, 0], "Invalid backing file offset"),
    (
        96,
        &[0, 0, 0, 7],
        "Reference count entry width too large; may not exceed 64 bits",
    ),
    (32, &[0, 0, 0, 3], "Unsupported encryption method 3"),
    (
        24,
        &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0],
        "Image is too big",
    ),
    (24, &[0, 0, 0, 0, 0x80, 0, 0, 0], "L1 table is too small"),
    (36, &[0, 0, 0, 0], "L1 table is too small"),
    (36, &[0, 0x40, 0, 1], "Active L1 table too large"),
    (
        40,
        &[0, 0, 0, 0, 0, 0, 2, 0],
        "Active L1 table offset invalid",
    ),
    (
        48,
        &[0, 0, 0, 0, 0, 0, 2, 0],
        "Reference count table offset invalid",
    ),
    (
        56,
        &[0, 0, 0, 0],
        "Image does not contain a reference count table",
    ),
    (56, &[0, 0, 0, 129], "Reference count table too large"),
    (60, &[0, 1, 0, 1], "Snapshot table too large"),
    (
        60,
        &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0],
        "Snapshot table offset invalid",
    ),
    (
        79,
        &[0x20],
        "Unsupported qcow2 feature(s): Unknown incompatible feature: 20",
    ),
    (
        79,
        &[8],
        "qcow2: Compression type incompatible feature bit must not be set",
    ),
    (
        104,
        &[1],
        "qcow2: Compression type incompatible feature bit must be set",
    ),
    (104, &[2], "qcow2: unknown compression type: 2"),
    (95, &[2], "data-file-raw requires a data file"),
    (0x74, &[0, 1, 0, 0], "Header extension too large"),
    (0x74, &[0xff; 4], "Header extension too large"),
    (
        0x70,
        &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 16],
        "ERROR: ext_backing_format: len=16 too large (>=16)",
    ),
    (
        0x70,
        &[5, 0x37, 0xbe, 0x77, 0, 0, 0, 16],
        "CRYPTO header extension only expected with LUKS encryption method",
    ),
];

#[test]
fn fields_out_of_their_limits_are_refused_in_known_words() {
    let good = plain(16).encode().expect("fits");
    for (at, value, words) in REFUSED {
        let mut bytes = good.clone();
        bytes[*at..at + value.len()].copy_from_slice(value);
        let error = Header::parse(&bytes, Strictness::Open).expect_err(words);
        assert_eq!(&error.to_string(), words);
    }
}

#[test]
fn an_encrypted_image_is_refused_and_says_so() {
    for method in 1..=2 {
        let mut bytes = plain(16).encode().expect("fits");
        bytes[35] = method;
        let error = Header::parse(&bytes, Strictness::Open).expect_err("encrypted");
        assert_eq!(error, HeaderError::Encrypted(method.into()));
    }
}

#[test]
fn a_checker_may_look_at_an_image_without_a_refcount_table() {
    let mut header = plain(16);
    header.refcount_table = TableAt::default();
    let bytes = header.encode().expect("fits");
    assert_eq!(Header::parse(&bytes, Strictness::Check), Ok(header));
}

#[test]
fn bitmaps_without_their_autoclear_bit_are_stale_and_not_written_again() {
    let mut header = plain(16);
    header.autoclear.bitmaps = true;
    header.bitmaps = Bitmaps::Valid(BitmapsAt {
        count: 1,
        len_bytes: 32,
        at: 65536,
    });
    let mut bytes = header.encode().expect("fits");
    bytes[95] = 0;
    let stale = Header::parse(&bytes, Strictness::Open).expect("opens");
    assert_eq!(stale.bitmaps, Bitmaps::Stale);
    let again = Header::parse(&stale.encode().expect("fits"), Strictness::Open);
    assert_eq!(again.expect("opens").bitmaps, Bitmaps::None);
}
