//! What `query-qmp-schema` says: whole, no more than there is, and the same as the real daemon says of what both have.

use super::{BOTH, NULL, Stage};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tests::daemon::Kind;

/// Where we have more than QEMU. `<case>` is a union's case.
const OURS: &[&str] = &[
    "add-fd",
    "remove-fd",
    "query-fdsets",
    "block-latency-histogram-set",
    "query-blockstats()[].driver-specific.driver=x-delay",
    "query-blockstats()[].stats.x-in-flight",
    "query-block()[].inserted.x-bitmap-journal",
    "x-debug-query-block-graph().x-drains",
    "blockdev-add.driver=x-delay",
    "blockdev-add<qcow2>.x-snapshot",
    "blockdev-add<qcow2>.x-image-names",
    "blockdev-add<qcow2>.x-probe-backing",
    "blockdev-add<qcow2>.x-bitmap-journal",
    "blockdev-add<raw>.x-bitmap-journal",
    "block-export-add<vhost-user-blk>.addr.type=connected-fd",
    "block-export-add<vhost-user-blk>.serial",
    "block-export-add<vhost-user-blk>.require-safe-del",
    "nbd-server-start.x-send-timeout",
    // QEMU 10.1 has them.
    "blockdev-backup.on-cbw-error",
    "blockdev-backup.cbw-timeout",
];
/// Features that we do not claim: a promise of more than we do.
const NOT_CLAIMED: &[&str] = &["dynamic-auto-read-only"];

/// A schema by name.
struct Schema(BTreeMap<String, Value>);

impl Schema {
    fn of(kind: Kind) -> (Schema, Stage) {
        let mut stage = Stage::new(kind, &NULL);
        let all = stage.qmp.succeed("query-qmp-schema", Value::Null);
        let all = all.as_array().unwrap();
        let name = |entry: &Value| entry["name"].as_str().unwrap().to_owned();
        let by_name: BTreeMap<_, _> = all.iter().map(|e| (name(e), e.clone())).collect();
        assert_eq!(by_name.len(), all.len(), "{kind:?}: names are unique");
        (Schema(by_name), stage)
    }

    fn get(&self, name: &Value) -> &Value {
        let name = name.as_str().unwrap();
        self.0.get(name).unwrap_or_else(|| panic!("no type {name}"))
    }

    fn of_meta_type(&self, meta_type: &str) -> BTreeSet<&str> {
        let all = self.0.iter();
        let fits = all.filter(|(_, entry)| entry["meta-type"] == meta_type);
        fits.map(|(name, _)| name.as_str()).collect()
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The types that an entry refers to.
fn references(entry: &Value) -> Vec<&Value> {
    let named = ["arg-type", "ret-type", "element-type"];
    let mut found: Vec<&Value> = named.iter().filter_map(|name| entry.get(name)).collect();
    // An enumeration's members have none.
    found.extend(
        list(&entry["members"])
            .iter()
            .filter_map(|member| member.get("type")),
    );
    found.extend(
        list(&entry["variants"])
            .iter()
            .map(|variant| &variant["type"]),
    );
    found
}

#[test]
fn the_schema_is_whole_and_lists_what_there_is() {
    let (schema, mut stage) = Schema::of(Kind::Virtioblkd);
    let mut reached = BTreeSet::new();
    for (name, entry) in &schema.0 {
        for to in references(entry) {
            schema.get(to);
            reached.insert(to.as_str().unwrap().to_owned());
        }
        let is_type = !["command", "event"].contains(&entry["meta-type"].as_str().unwrap());
        assert_eq!(
            list(&entry["variants"]).is_empty(),
            entry.get("tag").is_none(),
            "{name}"
        );
        if let Some(tag) = entry.get("tag") {
            let member = list(&entry["members"])
                .iter()
                .find(|member| member["name"] == *tag);
            let words = schema.get(&member.unwrap()["type"]);
            let cases: Vec<&Value> = list(&entry["variants"])
                .iter()
                .map(|v| &v["case"])
                .collect();
            let words: Vec<&Value> = list(&words["members"]).iter().map(|m| &m["name"]).collect();
            assert_eq!(cases, words, "{name}: a case for each word");
        }
        if is_type {
            assert!(
                entry.get("features").is_none_or(|f| !list(f).is_empty()),
                "{name}"
            );
        }
    }
    for (name, entry) in &schema.0 {
        let is_used = reached.contains(name);
        let is_type = !["command", "event"].contains(&entry["meta-type"].as_str().unwrap());
        assert_eq!(is_type, is_used, "{name} is of use");
    }
    let commands = stage.qmp.succeed("query-commands", Value::Null);
    let commands: BTreeSet<&str> = list(&commands)
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(schema.of_meta_type("command"), commands);
    for command in commands.iter().filter(|name| **name != "quit") {
        let wrong = stage.qmp.execute(command, json!({"x-nosuch": 1}));
        let error = wrong.expect_err(command);
        let is_found = error["class"] != "CommandNotFound" || *command == "qmp_capabilities";
        assert!(is_found, "{command}: {error}");
    }
}

#[test]
fn the_schema_agrees_with_the_real_one() {
    let [(theirs, _qsd), (ours, _we)] = BOTH.map(Schema::of);
    let mut comparison = Comparison {
        theirs: &theirs,
        ours: &ours,
        seen: BTreeSet::new(),
        found: BTreeSet::new(),
    };
    let listed = [ours.of_meta_type("command"), ours.of_meta_type("event")];
    for name in listed.iter().flatten() {
        let ours = ours.get(&json!(name));
        let Some(theirs) = theirs.0.get(*name) else {
            comparison.found.insert((*name).to_owned());
            continue;
        };
        comparison.entries(name, theirs, ours);
    }
    let found: Vec<&str> = comparison.found.iter().map(String::as_str).collect();
    let mut expected: Vec<&str> = OURS.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// Do arguments go in, or answers and events come out?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    In,
    Out,
}

struct Comparison<'a> {
    theirs: &'a Schema,
    ours: &'a Schema,
    seen: BTreeSet<(Way, String, String)>,
    found: BTreeSet<String>,
}

impl Comparison<'_> {
    fn note(&mut self, what: String) {
        self.found.insert(what);
    }

    fn entries(&mut self, name: &str, theirs: &Value, ours: &Value) {
        self.features(name, theirs, ours);
        if theirs.get("allow-oob") != ours.get("allow-oob") {
            self.note(format!("{name}: out of band"));
        }
        let arguments = match ours["meta-type"] == "event" {
            true => Way::Out,
            false => Way::In,
        };
        self.types(name, arguments, &theirs["arg-type"], &ours["arg-type"]);
        if ours["meta-type"] == "command" {
            let name = format!("{name}()");
            self.types(&name, Way::Out, &theirs["ret-type"], &ours["ret-type"]);
        }
    }

    fn features(&mut self, at: &str, theirs: &Value, ours: &Value) {
        let theirs = list(&theirs["features"]).iter();
        let theirs: Vec<&Value> = theirs
            .filter(|f| !NOT_CLAIMED.contains(&f.as_str().unwrap()))
            .collect();
        let ours: Vec<&Value> = list(&ours["features"]).iter().collect();
        if theirs != ours {
            self.note(format!("{at}: features {theirs:?}, ours {ours:?}"));
        }
    }

    fn types(&mut self, at: &str, way: Way, theirs: &Value, ours: &Value) {
        let pair = (way, theirs.to_string(), ours.to_string());
        if !self.seen.insert(pair) {
            return;
        }
        let (theirs, ours) = (self.theirs.get(theirs).clone(), self.ours.get(ours).clone());
        let kinds = (theirs["meta-type"].as_str(), ours["meta-type"].as_str());
        self.features(at, &theirs, &ours);
        match kinds {
            (Some("builtin"), Some("builtin")) if theirs == ours => {}
            (Some("enum"), Some("enum")) => self.words(at, &theirs, &ours),
            (Some("array"), Some("array")) => {
                let at = format!("{at}[]");
                self.types(&at, way, &theirs["element-type"], &ours["element-type"]);
            }
            (Some("alternate"), Some("alternate")) => self.alternates(at, way, &theirs, &ours),
            (Some("object"), Some("object")) => self.objects(at, way, &theirs, &ours),
            _ => self.note(format!("{at}: {theirs}, ours {ours}")),
        }
    }

    fn words(&mut self, at: &str, theirs: &Value, ours: &Value) {
        assert_eq!(
            ours["values"].as_array().map(Vec::len),
            ours["members"].as_array().map(Vec::len)
        );
        for word in list(&ours["members"]) {
            match list(&theirs["members"])
                .iter()
                .find(|w| w["name"] == word["name"])
            {
                None => self.note(format!("{at}={}", word["name"].as_str().unwrap())),
                Some(theirs) => self.features(at, theirs, word),
            }
        }
    }

    fn alternates(&mut self, at: &str, way: Way, theirs: &Value, ours: &Value) {
        let shape = |schema: &Schema, member: &Value| {
            let ty = schema.get(&member["type"]);
            (ty["meta-type"].clone(), ty["json-type"].clone())
        };
        for ours in list(&ours["members"]) {
            let wanted = shape(self.ours, ours);
            let theirs = list(&theirs["members"]).iter();
            match theirs
                .into_iter()
                .find(|theirs| shape(self.theirs, theirs) == wanted)
            {
                Some(theirs) => self.types(at, way, &theirs["type"], &ours["type"]),
                None => self.note(format!("{at}: {wanted:?}")),
            }
        }
    }

    fn objects(&mut self, at: &str, way: Way, theirs: &Value, ours: &Value) {
        for member in list(&ours["members"]) {
            let at = format!("{at}.{}", member["name"].as_str().unwrap());
            let Some(theirs) = list(&theirs["members"])
                .iter()
                .find(|m| m["name"] == member["name"])
            else {
                self.note(at);
                continue;
            };
            self.features(&at, theirs, member);
            if theirs.get("default") != member.get("default") {
                self.note(format!("{at}: optional for one alone"));
            }
            self.types(&at, way, &theirs["type"], &member["type"]);
        }
        for member in list(&theirs["members"]) {
            let is_known = list(&ours["members"])
                .iter()
                .any(|m| m["name"] == member["name"]);
            if !is_known && member.get("default").is_none() {
                self.note(format!("{at}.{}: missing", member["name"]));
            }
        }
        for variant in list(&ours["variants"]) {
            let theirs = list(&theirs["variants"]).iter();
            // A word of our own has been noted where the words are.
            if let Some(theirs) = theirs.into_iter().find(|v| v["case"] == variant["case"]) {
                let at = format!("{at}<{}>", variant["case"].as_str().unwrap());
                self.types(&at, way, &theirs["type"], &variant["type"]);
            }
        }
    }
}
