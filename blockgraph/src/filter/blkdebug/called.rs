//! What a blkdebug node is called: `blkdebug:config:image`, or by its options where there are others.

use super::{BlkdebugEvent, InjectError, IoType, Options, SetState};
use crate::graph::name::{Described, Setting, Settings, Short};
use std::path::Path;

/// What there is to say of a node with those options, before the rules of `config` are added to them.
pub fn described(options: &Options, config: Option<&Path>) -> Described {
    let mut settings = limits(options);
    for (at, rule) in options.inject_error.iter().enumerate() {
        settings.extend(injection(at, rule));
    }
    for (at, rule) in options.set_state.iter().enumerate() {
        settings.extend(transition(at, rule));
    }
    let config = config.map(|path| path.display().to_string());
    let prefix = format!("blkdebug:{}:", config.as_deref().unwrap_or_default());
    let short = match settings.is_empty() {
        true => Short::Before(prefix),
        false => Short::None,
    };
    settings.extend(config.map(|config| ("config".to_owned(), Setting::Text(config))));
    Described { settings, short }
}

fn limits(options: &Options) -> Settings {
    let pretended = &options.pretended;
    let limits = [
        ("align", pretended.align),
        ("max-transfer", pretended.max_transfer),
        ("opt-write-zero", pretended.opt_write_zero),
        ("max-write-zero", pretended.max_write_zero),
        ("opt-discard", pretended.opt_discard),
        ("max-discard", pretended.max_discard),
    ];
    let said = limits
        .into_iter()
        .filter_map(|(name, limit)| Some((name.to_owned(), Setting::Number(limit?.into()))));
    said.collect()
}

fn event(event: BlkdebugEvent) -> Setting {
    let named = BlkdebugEvent::EACH.iter().find(|(each, _)| *each == event);
    Setting::Text(named.map_or("", |(_, name)| name).to_owned())
}

fn number(value: i64) -> Setting {
    Setting::Number(u64::try_from(value).unwrap_or(0))
}

fn injection(at: usize, rule: &InjectError) -> Settings {
    let io_type = rule.io_type.map(|io_type| match io_type {
        IoType::Read => "read",
        IoType::Write => "write",
        IoType::WriteZeroes => "write-zeroes",
        IoType::Discard => "discard",
        IoType::Flush => "flush",
        IoType::BlockStatus => "block-status",
    });
    let said = [
        Some(("event", event(rule.event))),
        (rule.state != 0).then(|| ("state", number(rule.state))),
        io_type.map(|io_type| ("iotype", Setting::Text(io_type.to_owned()))),
        (rule.errno != libc::EIO).then(|| ("errno", number(rule.errno.into()))),
        rule.sector
            .map(|sector| ("sector", Setting::Number(sector))),
        rule.once.then_some(("once", Setting::Switch(true))),
        rule.immediately
            .then_some(("immediately", Setting::Switch(true))),
    ];
    let said = said.into_iter().flatten();
    said.map(|(name, value)| (format!("inject-error.{at}.{name}"), value))
        .collect()
}

fn transition(at: usize, rule: &SetState) -> Settings {
    let said = [
        Some(("event", event(rule.event))),
        (rule.state != 0).then(|| ("state", number(rule.state))),
        Some(("new_state", number(rule.new_state))),
    ];
    let said = said.into_iter().flatten();
    said.map(|(name, value)| (format!("set-state.{at}.{name}"), value))
        .collect()
}
