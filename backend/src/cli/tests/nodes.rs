//! Images and filters: defaults, and what inline children inherit.

use super::{node, one};
use crate::cli::{
    Backing, BlockdevOptions, ChildRef, Command, Discard, DriverOptions, NodeCommon, ObjectOptions,
    OverlapChecks, Qcow2CacheOptions, Qcow2Options, ThrottleLimits, ThrottleRate,
};

fn qcow2(argument: &str) -> Qcow2Options {
    match node(argument).driver {
        DriverOptions::Qcow2(image) => *image,
        other => panic!("{argument}: {other:?}"),
    }
}

fn inline(child: &ChildRef) -> &BlockdevOptions {
    match child {
        ChildRef::Inline(node) => node,
        ChildRef::Node(name) => panic!("{name} is not inline"),
    }
}

#[test]
fn an_image_has_the_defaults_of_qemu() {
    let image = qcow2("qcow2,node-name=n,file=f");
    assert_eq!(image.file, ChildRef::Node("f".to_owned()));
    assert_eq!(image.backing, Backing::AsTheImageSays);
    assert_eq!((image.data_file, image.lazy_refcounts), (None, None));
    let discards = (
        image.pass_discard_request,
        image.pass_discard_snapshot,
        image.pass_discard_other,
        image.discard_no_unref,
    );
    assert_eq!(discards, (false, true, false, false));
    assert_eq!(image.cache, Qcow2CacheOptions::default());
    let cached = OverlapChecks {
        main_header: true,
        active_l1: true,
        active_l2: true,
        refcount_table: true,
        refcount_block: true,
        snapshot_table: true,
        inactive_l1: true,
        inactive_l2: false,
        bitmap_directory: true,
    };
    assert_eq!(image.overlap_check, cached);
}

#[test]
fn a_guests_discards_pass_where_the_image_takes_discards_unless_said() {
    assert!(qcow2("qcow2,node-name=n,file=f,discard=unmap").pass_discard_request);
    let off = qcow2("qcow2,node-name=n,file=f,discard=unmap,pass-discard-request=off");
    assert!(!off.pass_discard_request);
}

#[test]
fn null_and_nothing_mean_no_backing_and_a_name_means_a_node() {
    let null = qcow2(r#"{"driver":"qcow2","node-name":"n","file":"f","backing":null}"#);
    assert_eq!(null.backing, Backing::Nothing);
    let nothing = qcow2("qcow2,node-name=n,file=f,backing=");
    assert_eq!(nothing.backing, Backing::Nothing);
    let named = qcow2("qcow2,node-name=n,file=f,backing=b");
    assert_eq!(
        named.backing,
        Backing::Child(ChildRef::Node("b".to_owned()))
    );
}

#[test]
fn flags_of_the_overlap_check_change_its_template() {
    let checks = qcow2("qcow2,node-name=n,file=f,overlap-check.template=none").overlap_check;
    assert_eq!(
        qcow2("qcow2,node-name=n,file=f,overlap-check=none").overlap_check,
        checks
    );
    let one = "qcow2,node-name=n,file=f,overlap-check.template=none,overlap-check.inactive-l2=on";
    let expected = OverlapChecks {
        inactive_l2: true,
        ..checks
    };
    assert_eq!(qcow2(one).overlap_check, expected);
}

#[test]
fn a_backing_child_is_read_only_by_default_and_a_data_file_is_as_its_image() {
    let image = qcow2(
        "qcow2,node-name=n,auto-read-only=on,cache.direct=on,file.driver=file,file.filename=/f,\
         backing.driver=qcow2,backing.file.driver=file,backing.file.filename=/b,\
         data-file.driver=file,data-file.filename=/d",
    );
    let written = NodeCommon {
        discard: Discard::Unmap,
        cache_direct: true,
        auto_read_only: true,
        ..NodeCommon::ROOT
    };
    let read = NodeCommon {
        read_only: true,
        auto_read_only: false,
        ..written.clone()
    };
    assert_eq!(inline(&image.file).common, written);
    let data_file = image.data_file.expect("a data file");
    assert_eq!(inline(&data_file).common, written);
    let Backing::Child(backing) = image.backing else {
        panic!("{:?}", image.backing);
    };
    let backing = inline(&backing);
    assert_eq!(backing.common, read);
    let below = backing.driver.children().next().expect("a file");
    assert_eq!(inline(below).common, read);
}

#[test]
fn a_throttle_group_may_be_told_its_limits_in_two_ways() {
    let limits = |argument: &str| match one("--object", argument) {
        Ok(Command::Object(ObjectOptions::ThrottleGroup(group))) => group.limits,
        other => panic!("{argument}: {other:?}"),
    };
    assert_eq!(limits("throttle-group,id=g"), ThrottleLimits::default());
    let expected = ThrottleLimits {
        iops_read: ThrottleRate {
            average: 5,
            max: 50,
            max_length_s: 3,
        },
        iops_size_bytes: 4096,
        ..ThrottleLimits::default()
    };
    assert_eq!(
        limits(
            "throttle-group,id=g,limits.iops-read=5,limits.iops-read-max=50,\
             limits.iops-read-max-length=3,limits.iops-size=4096"
        ),
        expected
    );
    assert_eq!(
        limits(
            "throttle-group,id=g,x-iops-read=5,x-iops-read-max=50,x-iops-read-max-length=3,\
             x-iops-size=4096"
        ),
        expected
    );
}
