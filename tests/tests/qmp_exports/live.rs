//! What is changed while a guest runs, and obeyed at once.

use super::{NULL, Stage, serves};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::client::blk::{OK, Request};
use tests::client::patience;
use tests::daemon::Kind;

/// At one a second they would take this many seconds.
const REQUESTS: usize = 30;

#[test]
fn a_running_guest_obeys_new_limits_at_once() {
    let group = ["--object", "throttle-group,id=g,limits.iops-total=1"];
    let throttle = ["--blockdev", "throttle,node-name=t,throttle-group=g,file=n"];
    let arguments = [NULL, group, throttle].concat();
    let mut stage = Stage::new(Kind::Virtioblkd, &arguments);
    let export = stage.export_with("node-name", json!("t"));
    stage.qmp.succeed("block-export-add", export);
    let mut guest = stage.guest();
    let begun = Instant::now();
    let pending: Vec<_> = (0..REQUESTS)
        .map(|_| guest.add(0, &Request::read(0, 512)))
        .collect();
    guest.submit(0);
    serves_at_least(&mut guest, 2);
    let limits = |value| json!({"path": "/objects/g", "property": "limits", "value": value});
    stage
        .qmp
        .succeed("qom-set", limits(json!({"iops-total": 0})));
    for _ in 2..REQUESTS {
        guest.rings[0].wait(Instant::now() + patience()).unwrap();
        guest.rings[0].pop().unwrap();
    }
    let took = begun.elapsed();
    assert!(
        took < Duration::from_secs(REQUESTS as u64 / 2),
        "took {took:?}"
    );
    let all_well = |p| guest.done(p, 0).status == OK;
    assert!(pending.into_iter().all(all_well));
    // And back.
    stage
        .qmp
        .succeed("qom-set", limits(json!({"iops-total": 2})));
    let begun = Instant::now();
    (0..4).for_each(|_| serves(&mut guest));
    assert!(begun.elapsed() > Duration::from_millis(1000), "not limited");
}

fn serves_at_least(guest: &mut tests::client::guest::Guest, count: usize) {
    for _ in 0..count {
        guest.rings[0].wait(Instant::now() + patience()).unwrap();
        guest.rings[0].pop().unwrap();
    }
}

#[test]
fn an_iothread_comes_and_goes_with_its_object() {
    let mut stage = Stage::new(Kind::Virtioblkd, &NULL);
    let has_thread = |stage: &Stage| stage.threads().iter().any(|name| name.starts_with("disks"));
    for _ in 0..3 {
        stage
            .qmp
            .succeed("object-add", json!({"qom-type": "iothread", "id": "disks"}));
        let export = stage.export_with("iothread", json!("disks"));
        stage.qmp.succeed("block-export-add", export);
        let mut guest = stage.guest();
        serves(&mut guest);
        assert!(has_thread(&stage), "{:?}", stage.threads());
        let refusal = stage.qmp.refusal("object-del", json!({"id": "disks"}));
        assert_eq!(refusal, "object 'disks' is in use, can not be deleted");
        for (name, value) in [
            ("poll-max-ns", 0),
            ("poll-grow", 3),
            ("poll-shrink", 2),
            ("poll-max-ns", 5000),
        ] {
            let property = json!({"path": "/objects/disks", "property": name});
            let mut set = property.clone();
            set["value"] = json!(value);
            stage.qmp.succeed("qom-set", set);
            assert_eq!(stage.qmp.succeed("qom-get", property), json!(value));
            serves(&mut guest);
        }
        stage.qmp.succeed("block-export-del", json!({"id": "e"}));
        stage.qmp.succeed("object-del", json!({"id": "disks"}));
        assert!(stage.loses_threads("disks"), "{:?}", stage.threads());
        assert!(
            stage
                .qmp
                .execute("qom-list", json!({"path": "/objects/disks"}))
                .is_err()
        );
    }
}
