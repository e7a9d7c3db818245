//! The guest and daemon harness itself: what fails in a guest must fail here, with what one needs to see why.

use std::time::Duration;
use tests::daemon::{Daemon, Disk, Kind};
use tests::guest::{Guest, GuestError, GuestSpec};

#[test]
fn failing_scripts_tell_their_code_and_output_and_a_sudden_reboot_is_noticed() {
    let mut guest = Guest::boot(&GuestSpec::new()).unwrap();

    let output = guest
        .run("echo one; echo two >&2; printf three; exit 7")
        .unwrap();
    assert_eq!(
        (output.exit_code, output.text.as_str()),
        (7, "one\ntwo\nthree")
    );
    let error = guest.check("echo before; false; echo after").unwrap_err();
    let GuestError::Script {
        exit_code: 1, text, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(text, "before");
    let error = guest.check("reboot -f; sleep 600").unwrap_err();
    assert!(matches!(error, GuestError::Rebooted { .. }), "{error}");
}

#[test]
fn script_past_its_limit_ends_the_guest_and_shows_the_console() {
    let mut guest = Guest::boot(&GuestSpec::new()).unwrap();
    guest
        .check("echo written to the console >/dev/console")
        .unwrap();

    guest.set_time_limit(Duration::from_secs(1));
    let error = guest.check("sleep 600").unwrap_err();
    assert!(matches!(error, GuestError::TimeLimit { .. }), "{error}");
    assert!(
        error.to_string().contains("written to the console"),
        "{error}"
    );
    let error = guest.run("true").unwrap_err();
    assert!(matches!(error, GuestError::Ended { .. }), "{error}");
}

#[test]
fn daemon_that_cannot_open_its_disk_is_reported_with_what_it_said() {
    let error = Daemon::serve(Kind::from_env(), &[Disk::new("/nonexistent/disk.raw")]).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/disk.raw"),
        "{error}"
    );
    assert!(
        error.to_string().contains("No such file or directory"),
        "{error}"
    );
}
