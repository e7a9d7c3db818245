//! What `query-qmp-schema` answers (qapi/introspect.json): the tables, described by a table.

use crate::qapi::{ANY, BOOL, Case, Enum, Object, STR, Type, enumeration, object, opt, req, union};

/// `SchemaInfo`
pub static SCHEMA_INFO: Object = union(
    "SchemaInfo",
    &[
        req("name", STR),
        req("meta-type", Type::Enum(&SCHEMA_META_TYPE)),
        opt("features", Type::Array(&STR)),
    ],
    "meta-type",
    &[
        Case {
            word: "builtin",
            object: &SCHEMA_INFO_BUILTIN,
        },
        Case {
            word: "enum",
            object: &SCHEMA_INFO_ENUM,
        },
        Case {
            word: "array",
            object: &SCHEMA_INFO_ARRAY,
        },
        Case {
            word: "object",
            object: &SCHEMA_INFO_OBJECT,
        },
        Case {
            word: "alternate",
            object: &SCHEMA_INFO_ALTERNATE,
        },
        Case {
            word: "command",
            object: &SCHEMA_INFO_COMMAND,
        },
        Case {
            word: "event",
            object: &SCHEMA_INFO_EVENT,
        },
    ],
);

/// `SchemaMetaType`
pub static SCHEMA_META_TYPE: Enum = enumeration(
    "SchemaMetaType",
    &[
        "builtin",
        "enum",
        "array",
        "object",
        "alternate",
        "command",
        "event",
    ],
);

/// `SchemaInfoBuiltin`
pub static SCHEMA_INFO_BUILTIN: Object = object(
    "SchemaInfoBuiltin",
    &[req("json-type", Type::Enum(&JSON_TYPE))],
);

/// `JSONType`
pub static JSON_TYPE: Enum = enumeration(
    "JSONType",
    &[
        "string", "number", "int", "boolean", "null", "object", "array", "value",
    ],
);

/// `SchemaInfoEnum`
pub static SCHEMA_INFO_ENUM: Object = object(
    "SchemaInfoEnum",
    &[
        req(
            "members",
            Type::Array(&Type::Object(&SCHEMA_INFO_ENUM_MEMBER)),
        ),
        req("values", Type::Array(&STR)).deprecated(),
    ],
);

/// `SchemaInfoEnumMember`
pub static SCHEMA_INFO_ENUM_MEMBER: Object = object(
    "SchemaInfoEnumMember",
    &[req("name", STR), opt("features", Type::Array(&STR))],
);

/// `SchemaInfoArray`
pub static SCHEMA_INFO_ARRAY: Object = object("SchemaInfoArray", &[req("element-type", STR)]);

/// `SchemaInfoObject`
pub static SCHEMA_INFO_OBJECT: Object = object(
    "SchemaInfoObject",
    &[
        req(
            "members",
            Type::Array(&Type::Object(&SCHEMA_INFO_OBJECT_MEMBER)),
        ),
        opt("tag", STR),
        opt(
            "variants",
            Type::Array(&Type::Object(&SCHEMA_INFO_OBJECT_VARIANT)),
        ),
    ],
);

/// `SchemaInfoObjectMember`
pub static SCHEMA_INFO_OBJECT_MEMBER: Object = object(
    "SchemaInfoObjectMember",
    &[
        req("name", STR),
        req("type", STR),
        opt("default", ANY),
        opt("features", Type::Array(&STR)),
    ],
);

/// `SchemaInfoObjectVariant`
pub static SCHEMA_INFO_OBJECT_VARIANT: Object = object(
    "SchemaInfoObjectVariant",
    &[req("case", STR), req("type", STR)],
);

/// `SchemaInfoAlternate`
pub static SCHEMA_INFO_ALTERNATE: Object = object(
    "SchemaInfoAlternate",
    &[req(
        "members",
        Type::Array(&Type::Object(&SCHEMA_INFO_ALTERNATE_MEMBER)),
    )],
);

/// `SchemaInfoAlternateMember`
pub static SCHEMA_INFO_ALTERNATE_MEMBER: Object =
    object("SchemaInfoAlternateMember", &[req("type", STR)]);

/// `SchemaInfoCommand`
pub static SCHEMA_INFO_COMMAND: Object = object(
    "SchemaInfoCommand",
    &[
        req("arg-type", STR),
        req("ret-type", STR),
        opt("allow-oob", BOOL),
    ],
);

/// `SchemaInfoEvent`
pub static SCHEMA_INFO_EVENT: Object = object("SchemaInfoEvent", &[req("arg-type", STR)]);
