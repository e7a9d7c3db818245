//! The model itself can tell right from wrong.

use super::support::history::*;
use super::support::sectors::Version;

fn change(token: u64, version: Version, begun: Moment, ended: Moment) -> Change {
    let (sure, through) = (Sure::Yes, false);
    Change {
        token,
        version,
        sure,
        begun,
        ended,
        through,
    }
}

#[test]
fn what_has_ended_hides_what_was_before_it_and_not_what_overlaps() {
    let mut sector = Sector::zero();
    sector.0.extend([change(1, 1, 2, 4), change(2, 2, 3, 9)]);
    assert_eq!(sector.may_be(1, 2), [0]);
    assert_eq!(sector.may_be(3, 5), [0, 1, 2]);
    assert_eq!(sector.may_be(6, 7), [1, 2]);
    assert_eq!(sector.may_be_left(0), [0, 1, 2]);
    assert_eq!(sector.may_be_left(5), [1, 2]);
}

#[test]
fn a_snapshot_that_mixes_moments_or_has_half_a_write_is_found_out() {
    let mut sectors = vec![Sector::zero(); 3];
    sectors[0].0.push(change(1, 1, 2, 3));
    sectors[1].0.push(change(2, 2, 5, 6));
    sectors[2].0.push(change(2, 2, 5, 6));
    let wrong = |found: &[Version], during| {
        is_of_one_moment(&sectors, found, during).and_then(|()| has_no_part(&sectors, found))
    };
    assert_eq!(wrong(&[1, 0, 0], (1, 9)), Ok(()));
    assert_eq!(wrong(&[1, 2, 2], (1, 9)), Ok(()));
    assert!(wrong(&[0, 2, 2], (1, 9)).is_err());
    assert!(wrong(&[1, 2, 0], (1, 9)).is_err());
    assert!(wrong(&[1, 0, 0], (7, 9)).is_err());
}
