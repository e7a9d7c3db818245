//! Commands about dirty bitmaps.

use super::{Command, NOTHING, command, done};
use crate::cli::{BitmapRef, Object, Refusal, bitmap_refs};
use crate::qapi::Type;
use crate::qapi::tables::bitmaps::{
    BLOCK_DIRTY_BITMAP_ADD, BLOCK_DIRTY_BITMAP_MERGE, BLOCK_DIRTY_BITMAP_SHA256,
};
use crate::qapi::tables::exports::BLOCK_DIRTY_BITMAP;
use crate::qmp::{Context, QmpError};
use blockgraph::bitmap::{
    self, BitmapAdmin, BitmapError, BitmapName, Keeping, NewBitmap, Saved, Source, State,
};
use serde_json::{Value, json};

pub(super) static COMMANDS: &[Command] = &[
    command(
        "block-dirty-bitmap-add",
        &BLOCK_DIRTY_BITMAP_ADD,
        NOTHING,
        add,
    ),
    command(
        "block-dirty-bitmap-remove",
        &BLOCK_DIRTY_BITMAP,
        NOTHING,
        |c, a| change(c, a, |admin, node, name| admin.remove(node, name)),
    ),
    command(
        "block-dirty-bitmap-clear",
        &BLOCK_DIRTY_BITMAP,
        NOTHING,
        |c, a| change(c, a, |admin, node, name| admin.clear(node, name)),
    ),
    command(
        "block-dirty-bitmap-enable",
        &BLOCK_DIRTY_BITMAP,
        NOTHING,
        |c, a| change(c, a, enable),
    ),
    command(
        "block-dirty-bitmap-disable",
        &BLOCK_DIRTY_BITMAP,
        NOTHING,
        |c, a| change(c, a, |admin, node, name| admin.disable(node, name)),
    ),
    command(
        "block-dirty-bitmap-merge",
        &BLOCK_DIRTY_BITMAP_MERGE,
        NOTHING,
        merge,
    ),
    Command {
        features: &["unstable"],
        ..command(
            "x-debug-block-dirty-bitmap-sha256",
            &BLOCK_DIRTY_BITMAP,
            Type::Object(&BLOCK_DIRTY_BITMAP_SHA256),
            sha256,
        )
    },
];

impl From<BitmapError> for QmpError {
    fn from(error: BitmapError) -> QmpError {
        QmpError::new(error.to_string())
    }
}

fn add(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let node = arguments.required_string("node")?;
    let new = new_bitmap(&mut arguments)?;
    let name = new.name.clone();
    let mut admin = context.daemon.bitmaps();
    admin.add(&node, new)?;
    if let Err(error) = admin.store(&node) {
        admin.remove(&node, &name)?;
        return Err(error.into());
    }
    done()
}

/// A bitmap to be added; its node is taken already.
pub(super) fn new_bitmap(arguments: &mut Object) -> Result<NewBitmap, Refusal> {
    Ok(NewBitmap {
        name: arguments.required_string("name")?,
        granularity_bytes: arguments.uint32("granularity")?,
        state: match arguments.boolean("disabled")?.unwrap_or(false) {
            true => State::Disabled,
            false => State::Recording,
        },
        keeping: match arguments.boolean("persistent")?.unwrap_or(false) {
            true => Keeping::Persistent,
            false => Keeping::InMemory,
        },
    })
}

/// A bitmap by the names of its node and its own.
pub(super) fn bitmap_name(arguments: &mut Object) -> Result<BitmapName, Refusal> {
    Ok(BitmapName {
        node: arguments.required_string("node")?,
        name: arguments.required_string("name")?,
    })
}

type Change = fn(&mut BitmapAdmin<'_>, &str, &str) -> Result<(), BitmapError>;

fn change(
    context: &mut Context<'_>,
    mut arguments: Object,
    change: Change,
) -> Result<Value, QmpError> {
    let node = arguments.required_string("node")?;
    let name = arguments.required_string("name")?;
    let mut admin = context.daemon.bitmaps();
    change(&mut admin, &node, &name)?;
    // Should that fail, a crash brings back more than there is, and no less.
    if let Err(error) = admin.store(&node) {
        tracing::warn!("node '{node}': {error}");
    }
    done()
}

fn enable(admin: &mut BitmapAdmin<'_>, node: &str, name: &str) -> Result<(), BitmapError> {
    let before = admin.state(node, name)?;
    admin.enable(node, name)?;
    let stored = admin.store(node);
    if stored.is_err() && before != State::Recording {
        admin.disable(node, name)?;
    }
    stored
}

fn merge(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let node = arguments.required_string("node")?;
    let target = arguments.required_string("target")?;
    let sources = merge_sources(&mut arguments)?;
    let mut admin = context.daemon.bitmaps();
    let saved = admin.save_if_journaled(&node, &target)?;
    admin.merge(&node, &target, &sources)?;
    if let Err(error) = admin.store(&node) {
        saved.into_iter().for_each(Saved::restore);
        return Err(error.into());
    }
    done()
}

/// What is merged.
pub(super) fn merge_sources(arguments: &mut Object) -> Result<Vec<Source>, Refusal> {
    let refs = bitmap_refs(arguments, "bitmaps")?.unwrap_or_default();
    let refs = refs.into_iter();
    Ok(refs
        .map(|BitmapRef { node, name }| Source { node, name })
        .collect())
}

fn sha256(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let node = arguments.required_string("node")?;
    let name = arguments.required_string("name")?;
    let graph = context.daemon.graph();
    let found = bitmap::find(&graph, &node, &name)?;
    Ok(json!({"sha256": found.bitmap.sha256()}))
}
