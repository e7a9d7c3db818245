//! The status matrix: what we say of every range of an image is what the real qemu-img says, through chains with filters
//! in any place, by our own walk and through our NBD export, and allocation depths are those of a real server.

mod images;
mod nbd;
mod walk;

use images::{Image, NULL, run, text};
use serde_json::Value;

/// What `qemu-img map` says of a range, but for two things that QEMU adds: offsets of what is no data (holes in files), and
/// that there is space behind zeroes, which it says of some zeroes with space and not of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) depth: u64,
    pub(crate) present: bool,
    pub(crate) zero: bool,
    pub(crate) data: bool,
    pub(crate) compressed: bool,
    pub(crate) offset: Option<u64>,
}

/// Joins neighbours that say the same.
pub(crate) fn merged(ranges: Vec<Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::new();
    for mut range in ranges {
        range.data &= !range.zero;
        range.offset = range.offset.filter(|_| range.data);
        let goes_on = merged.last().is_some_and(|last| {
            let expected = Range {
                start: last.start + last.len,
                len: range.len,
                offset: last.offset.map(|offset| offset + last.len),
                ..last.clone()
            };
            expected == range
        });
        match merged.last_mut().filter(|_| goes_on) {
            Some(last) => last.len += range.len,
            None => merged.push(range),
        }
    }
    merged
}

/// `qemu-img map --output=json` with those arguments.
pub(crate) fn qemu_map(args: &[&str]) -> Vec<Range> {
    let mut all = vec!["map", "--output=json"];
    all.extend(args);
    let said: Value = serde_json::from_str(&run("qemu-img", &all)).expect("JSON");
    let ranges = said.as_array().expect("a list").iter();
    let number = |range: &Value, name: &str| range[name].as_u64();
    let yes = |range: &Value, name: &str| range[name].as_bool().unwrap_or(false);
    let ranges = ranges.map(|range| Range {
        start: number(range, "start").expect("a number"),
        len: number(range, "length").expect("a number"),
        depth: number(range, "depth").expect("a number"),
        present: yes(range, "present"),
        zero: yes(range, "zero"),
        data: yes(range, "data"),
        compressed: yes(range, "compressed"),
        offset: number(range, "offset"),
    });
    merged(ranges.collect())
}

/// The same of an image's files.
pub(crate) fn map_of_files(image: &Image) -> Vec<Range> {
    let top = &image.layers[0];
    match top.format {
        NULL => qemu_map(&["--image-opts", &null_options(text(&top.path))]),
        format => qemu_map(&["-f", format, text(&top.path)]),
    }
}

pub(crate) fn null_options(reads: &str) -> String {
    format!("driver=null-co,size=1048576,read-zeroes={reads}")
}
