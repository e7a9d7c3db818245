//! The descriptor that management software reads from /usr/share/qemu/vhost-user (QEMU, docs/interop/vhost-user.json, VhostUserBackend).
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use serde_json::{Map, Value};
use std::path::Path;

fn descriptor() -> Map<String, Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend/50-virtioblkd.json");
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).expect("the descriptor is a JSON object")
}

#[test]
fn descriptor_names_a_block_backend_by_absolute_path() {
    let descriptor = descriptor();
    assert_eq!(descriptor["type"], "block");
    let binary = descriptor["binary"].as_str().expect("binary is a string");
    assert!(Path::new(binary).is_absolute());
    assert!(binary.ends_with("/virtioblkd"));
    assert!(
        descriptor["description"]
            .as_str()
            .is_some_and(|d| !d.is_empty())
    );
    let tags = descriptor["tags"].as_array().expect("tags is a list");
    assert!(tags.iter().all(Value::is_string));
}

#[test]
fn descriptor_has_no_members_the_schema_lacks() {
    let known = ["description", "type", "binary", "tags"];
    let unknown: Vec<_> = descriptor()
        .keys()
        .filter(|k| !known.contains(&k.as_str()))
        .cloned()
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
