//! Objects as a tree of properties, as QEMU shows them: `/objects` has a child for each.
//!
//! The rule: the properties of an object are those that it can be made with; which of them can change is in [`set`].

use super::{Command, NOTHING, command, done};
use crate::cli::{self, Object, Spelling};
use crate::daemon::{Daemon, ObjectShown};
use crate::open;
use crate::qapi::tables::objects::{
    OBJECT_OPTIONS, OBJECT_PROPERTY_INFO, OBJECT_TYPE_INFO, QOM_GET_ARG, QOM_LIST_ARG,
    QOM_LIST_PROPERTIES_ARG, QOM_LIST_TYPES_ARG, QOM_SET_ARG, THROTTLE_LIMITS,
};
use crate::qapi::{self, ANY, INT, Member, Type};
use crate::qmp::{Context, ErrorClass, QmpError};
use crate::queue::Polling;
use blockgraph::filter::throttle::{Group, Limits, Rate};
use serde_json::{Map, Value, json};

pub(super) static COMMANDS: &[Command] = &[
    command(
        "qom-list",
        &QOM_LIST_ARG,
        Type::Array(&Type::Object(&OBJECT_PROPERTY_INFO)),
        qom_list,
    ),
    command("qom-get", &QOM_GET_ARG, ANY, qom_get),
    command("qom-set", &QOM_SET_ARG, NOTHING, qom_set),
    command(
        "qom-list-types",
        &QOM_LIST_TYPES_ARG,
        Type::Array(&Type::Object(&OBJECT_TYPE_INFO)),
        qom_list_types,
    ),
    command(
        "qom-list-properties",
        &QOM_LIST_PROPERTIES_ARG,
        Type::Array(&Type::Object(&OBJECT_PROPERTY_INFO)),
        qom_list_properties,
    ),
];

/// What a path leads to.
#[derive(Debug)]
enum Place<'a> {
    Root,
    Objects,
    Object(ObjectShown<'a>),
}

/// Paths begin at the root; one that does not is the end of one that does.
fn find<'a>(daemon: &'a Daemon, path: &str) -> Result<Place<'a>, QmpError> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let object = match (path.starts_with('/'), parts.as_slice()) {
        (true, []) => return Ok(Place::Root),
        (false, []) => return Err(QmpError::new(format!("Path '{path}' is ambiguous"))),
        (_, ["objects"]) => return Ok(Place::Objects),
        (_, ["objects", id]) | (false, [id]) => daemon.object(id),
        _ => None,
    };
    let missing = || {
        let class = ErrorClass::DeviceNotFound;
        QmpError::of_class(class, format!("Device '{path}' not found"))
    };
    object.map(Place::Object).ok_or_else(missing)
}

impl Place<'_> {
    fn type_name(&self) -> &'static str {
        match self {
            Place::Root | Place::Objects => "container",
            Place::Object(object) => object.type_name(),
        }
    }

    fn children(&self, daemon: &Daemon) -> Vec<(String, &'static str)> {
        match self {
            Place::Root => vec![("objects".to_owned(), "container")],
            Place::Objects => {
                let typed = |id: String| {
                    let name = daemon.object(&id)?.type_name();
                    Some((id, name))
                };
                daemon.object_ids().into_iter().filter_map(typed).collect()
            }
            Place::Object(_) => Vec::new(),
        }
    }

    fn path_of(&self, child: &str) -> String {
        match self {
            Place::Objects => format!("/objects/{child}"),
            Place::Root | Place::Object(_) => format!("/{child}"),
        }
    }

    fn unknown(&self, property: &str) -> QmpError {
        let name = self.type_name();
        QmpError::new(format!("Property '{name}.{property}' not found"))
    }
}

impl ObjectShown<'_> {
    fn type_name(&self) -> &'static str {
        match self {
            ObjectShown::Iothread(_) => "iothread",
            ObjectShown::ThrottleGroup(_) => "throttle-group",
            ObjectShown::TlsCredsX509(_) => "tls-creds-x509",
        }
    }
}

/// What objects of a type are made with.
fn properties(type_name: &str) -> &'static [Member] {
    let made_with = OBJECT_OPTIONS.case(type_name);
    made_with.map_or(&[], |object| object.members)
}

fn listed(name: &str, ty: &str) -> Value {
    json!({"name": name, "type": ty})
}

fn listed_properties(type_name: &str) -> Vec<Value> {
    let shown = |member: &Member| listed(member.name, member.ty.qom_name());
    let all = std::iter::once(listed("type", "string"));
    all.chain(properties(type_name).iter().map(shown)).collect()
}

fn qom_list(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let path = arguments.required_string("path")?;
    let place = find(context.daemon, &path)?;
    let mut shown = listed_properties(place.type_name());
    for (name, ty) in place.children(context.daemon) {
        shown.push(listed(&name, &format!("child<{ty}>")));
    }
    Ok(shown.into())
}

fn qom_get(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let path = arguments.required_string("path")?;
    let property = arguments.required_string("property")?;
    let place = find(context.daemon, &path)?;
    if property == "type" {
        return Ok(place.type_name().into());
    }
    let mut children = place.children(context.daemon).into_iter();
    if children.any(|(name, _)| name == property) {
        return Ok(place.path_of(&property).into());
    }
    let value = match &place {
        Place::Object(ObjectShown::Iothread(polling)) => poll_parameter(polling, &property),
        Place::Object(ObjectShown::ThrottleGroup(group)) => limit(group, &property),
        Place::Object(ObjectShown::TlsCredsX509(options)) => match property.as_str() {
            "dir" => Some(options.dir.to_string_lossy().into()),
            "endpoint" => Some(match options.endpoint {
                cli::TlsEndpoint::Client => "client".into(),
                cli::TlsEndpoint::Server => "server".into(),
            }),
            "verify-peer" => Some(options.verify_peer.into()),
            "sanity-check" => Some(options.sanity_check.into()),
            _ => None,
        },
        Place::Root | Place::Objects => None,
    };
    value.ok_or_else(|| place.unknown(&property))
}

fn poll_parameter(polling: &Polling, name: &str) -> Option<Value> {
    match name {
        "poll-max-ns" => Some(polling.max_ns().into()),
        "poll-grow" => Some(polling.grow().into()),
        "poll-shrink" => Some(polling.shrink().into()),
        _ => None,
    }
}

/// `limits`, or one of them by its older name.
fn limit(group: &Group, name: &str) -> Option<Value> {
    let mut limits = limits_shown(&group.limits());
    match name {
        "limits" => Some(limits.into()),
        older => limits.remove(older.strip_prefix("x-")?),
    }
}

fn limits_shown(limits: &Limits) -> Map<String, Value> {
    let rates = [
        ("bps-total", limits.bps_total),
        ("bps-read", limits.bps_read),
        ("bps-write", limits.bps_write),
        ("iops-total", limits.iops_total),
        ("iops-read", limits.iops_read),
        ("iops-write", limits.iops_write),
    ];
    let mut shown = Map::new();
    for (
        name,
        Rate {
            avg,
            max,
            max_length_s,
        },
    ) in rates
    {
        shown.insert(name.to_owned(), avg.into());
        shown.insert(format!("{name}-max"), max.into());
        shown.insert(format!("{name}-max-length"), max_length_s.into());
    }
    // A negative one was taken as what it is without its sign's meaning, and is shown as it was given.
    shown.insert(
        "iops-size".to_owned(),
        limits.iops_size.cast_signed().into(),
    );
    shown
}

fn qom_set(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let path = arguments.required_string("path")?;
    let property = arguments.required_string("property")?;
    let value = arguments.required_any("value")?;
    let place = find(context.daemon, &path)?;
    let mut children = place.children(context.daemon).into_iter();
    let is_child = children.any(|(name, _)| name == property);
    let known = properties(place.type_name()).iter();
    if !is_child && property != "type" && !known.into_iter().any(|known| known.name == property) {
        return Err(place.unknown(&property));
    }
    match &place {
        Place::Object(object) if property != "type" => set(object, &property, value)?,
        _ => return Err(not_writable(place.type_name(), &property)),
    }
    done()
}

fn not_writable(type_name: &str, property: &str) -> QmpError {
    QmpError::new(format!("Property '{type_name}.{property}' is not writable"))
}

/// Changes a property that there is.
fn set(object: &ObjectShown<'_>, property: &str, value: Value) -> Result<(), QmpError> {
    match object {
        ObjectShown::Iothread(polling) => set_poll_parameter(polling, property, &value),
        ObjectShown::ThrottleGroup(group) if property == "limits" => set_limits(group, value),
        ObjectShown::ThrottleGroup(_) => {
            Err(QmpError::new("Property cannot be set after initialization"))
        }
        // They were read once; QEMU changes the name and nothing else.
        ObjectShown::TlsCredsX509(_) => Err(not_writable(object.type_name(), property)),
    }
}

fn set_poll_parameter(polling: &Polling, name: &str, value: &Value) -> Result<(), QmpError> {
    qapi::check_member(name, value, INT)?;
    let given = value.as_i64().unwrap_or(-1);
    let given = u64::try_from(given).map_err(|_| {
        let max = i64::MAX;
        QmpError::new(format!("{name} value must be in range [0, {max}]"))
    })?;
    match name {
        "poll-grow" => polling.set_grow(given),
        "poll-shrink" => polling.set_shrink(given),
        _ => polling.set_max_ns(given),
    }
    Ok(())
}

/// Limits that are not mentioned stay as they are.
fn set_limits(group: &Group, value: Value) -> Result<(), QmpError> {
    qapi::check_member("limits", &value, Type::Object(&THROTTLE_LIMITS))?;
    let mut limits = limits_shown(&group.limits());
    if let Value::Object(given) = value {
        limits.extend(given);
    }
    let limits = Object::checked(limits, &THROTTLE_LIMITS, Spelling::Json)?;
    let limits = open::throttle_limits(&cli::throttle_limits(limits)?);
    let set = group.set_limits(limits);
    set.map_err(|error| QmpError::new(error.to_string()))
}

/// A type of the tree: its name, what it is a kind of, and whether there can be one.
struct QomType {
    name: &'static str,
    parent: Option<&'static str>,
    is_abstract: bool,
}

const fn concrete(name: &'static str, parent: &'static str) -> QomType {
    QomType {
        name,
        parent: Some(parent),
        is_abstract: false,
    }
}

const fn not_concrete(name: &'static str, parent: Option<&'static str>) -> QomType {
    QomType {
        name,
        parent,
        is_abstract: true,
    }
}

const USER_CREATABLE: &str = "user-creatable";
const TYPES: &[QomType] = &[
    not_concrete("object", None),
    not_concrete("interface", None),
    not_concrete(USER_CREATABLE, Some("interface")),
    not_concrete("event-loop-base", Some("object")),
    not_concrete("tls-creds", Some("object")),
    concrete("container", "object"),
    concrete("iothread", "event-loop-base"),
    concrete("throttle-group", "object"),
    concrete("tls-creds-x509", "tls-creds"),
];

fn qom_type_of(name: &str) -> Option<&'static QomType> {
    TYPES.iter().find(|ty| ty.name == name)
}

impl QomType {
    /// Itself, what it is a kind of, and so on.
    fn line(&'static self) -> impl Iterator<Item = &'static QomType> {
        std::iter::successors(Some(self), |ty| ty.parent.and_then(qom_type_of))
    }

    fn implements(&'static self, wanted: &str) -> bool {
        let is_made_by_users = OBJECT_OPTIONS.case(self.name).is_some();
        (wanted == USER_CREATABLE && is_made_by_users) || self.line().any(|ty| ty.name == wanted)
    }

    fn shown(&self) -> Value {
        let mut shown = json!({"name": self.name});
        if let Some(parent) = self.parent {
            shown["parent"] = parent.into();
        }
        if self.is_abstract {
            shown["abstract"] = true.into();
        }
        shown
    }
}

fn qom_list_types(_: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let implements = arguments.string("implements")?;
    let with_abstract = arguments.boolean("abstract")?.unwrap_or(false);
    let is_wanted = |ty: &&'static QomType| {
        let fits = implements
            .as_ref()
            .is_none_or(|wanted| ty.implements(wanted));
        fits && (with_abstract || !ty.is_abstract)
    };
    Ok(TYPES.iter().filter(is_wanted).map(QomType::shown).collect())
}

fn qom_list_properties(_: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let name = arguments.required_string("typename")?;
    let Some(found) = qom_type_of(&name) else {
        let class = ErrorClass::DeviceNotFound;
        return Err(QmpError::of_class(
            class,
            format!("Class '{name}' not found"),
        ));
    };
    if found.line().any(|ty| ty.name == "interface") {
        return Err(QmpError::new("Parameter 'typename' expects a QOM type"));
    }
    Ok(listed_properties(&name).into())
}
