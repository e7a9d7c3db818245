//! Bytes sent to a monitor of ours and to one of the real qemu-storage-daemon: the same bytes come back, but for the version's
//! text.

mod peer;
mod rows;

use peer::{Layout, Peer, Program};
use rows::{AT_ONCE, BEFORE, OOB, PRETTY};

const NEGOTIATE: &[u8] = b"{\"execute\":\"qmp_capabilities\"}";
const NEGOTIATE_OOB: &[u8] =
    b"{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}";

/// What both answer to each row, where they differ.
fn differences(
    layout: Layout,
    rows: &[&[u8]],
    talk: impl Fn(&Peer, &[u8]) -> String,
) -> Vec<String> {
    let (ours, theirs) = (
        Peer::start(Program::Ours, layout),
        Peer::start(Program::Theirs, layout),
    );
    let mut differences = Vec::new();
    for row in rows {
        let (got, expected) = (talk(&ours, row), talk(&theirs, row));
        if got != expected {
            let row = row.escape_ascii();
            differences.push(format!("{row}\n  QSD:  {expected}\n  ours: {got}"));
        }
    }
    differences
}

fn check(differences: &[String]) {
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn what_comes_before_negotiation_is_answered_with_the_same_bytes() {
    let talk = |peer: &Peer, row: &[u8]| peer.talk_to_the_end(&[row]);
    check(&differences(Layout::Compact, BEFORE, talk));
}

#[test]
fn whatever_is_sent_is_answered_with_the_same_bytes() {
    let talk = |peer: &Peer, row: &[u8]| peer.talk_to_the_end(&[NEGOTIATE, row]);
    check(&differences(Layout::Compact, AT_ONCE, talk));
}

#[test]
fn bytes_that_come_one_by_one_are_answered_the_same() {
    let talk = |peer: &Peer, row: &[u8]| {
        let mut pieces = vec![NEGOTIATE];
        pieces.extend(row.chunks(1));
        peer.talk_to_the_end(&pieces)
    };
    check(&differences(Layout::Compact, &AT_ONCE[..20], talk));
}

#[test]
fn pretty_answers_are_the_same_bytes() {
    let talk = |peer: &Peer, row: &[u8]| peer.talk_to_the_end(&[NEGOTIATE, row]);
    check(&differences(Layout::Pretty, PRETTY, talk));
}

#[test]
fn commands_out_of_band_are_answered_with_the_same_bytes() {
    let talk = |peer: &Peer, row: &[u8]| peer.talk_up_to_a_last_word(&[NEGOTIATE_OOB, row]);
    check(&differences(Layout::Compact, OOB, talk));
}
