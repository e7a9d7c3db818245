//! The older commands about jobs, which know block jobs alone.

use super::job_starts::COPY_MODES;
use super::{Command, NOTHING, command, done};
use crate::cli::Object;
use crate::daemon::{BlockJobShown, JobKind};
use crate::qapi::Type;
use crate::qapi::tables::EMPTY;
use crate::qapi::tables::jobs::{
    BLOCK_JOB_CANCEL_ARG, BLOCK_JOB_CHANGE_OPTIONS, BLOCK_JOB_COMPLETE_ARG, BLOCK_JOB_DISMISS_ARG,
    BLOCK_JOB_FINALIZE_ARG, BLOCK_JOB_INFO, BLOCK_JOB_PAUSE_ARG, BLOCK_JOB_RESUME_ARG,
    BLOCK_JOB_SET_SPEED_ARG,
};
use crate::qmp::{Context, QmpError};
use blockgraph::job::{Cancel, JobState, JobVerb};
use serde_json::{Value, json};

pub(super) static COMMANDS: &[Command] = &[
    command(
        "query-block-jobs",
        &EMPTY,
        Type::Array(&Type::Object(&BLOCK_JOB_INFO)),
        query,
    ),
    command(
        "block-job-set-speed",
        &BLOCK_JOB_SET_SPEED_ARG,
        NOTHING,
        set_speed,
    ),
    command("block-job-cancel", &BLOCK_JOB_CANCEL_ARG, NOTHING, cancel),
    command("block-job-pause", &BLOCK_JOB_PAUSE_ARG, NOTHING, |c, a| {
        ask(c, a, "device", JobVerb::Pause)
    }),
    command(
        "block-job-resume",
        &BLOCK_JOB_RESUME_ARG,
        NOTHING,
        |c, a| ask(c, a, "device", JobVerb::Resume),
    ),
    command(
        "block-job-complete",
        &BLOCK_JOB_COMPLETE_ARG,
        NOTHING,
        |c, a| ask(c, a, "device", JobVerb::Complete),
    ),
    command(
        "block-job-dismiss",
        &BLOCK_JOB_DISMISS_ARG,
        NOTHING,
        |c, a| ask(c, a, "id", JobVerb::Dismiss),
    ),
    command(
        "block-job-finalize",
        &BLOCK_JOB_FINALIZE_ARG,
        NOTHING,
        |c, a| ask(c, a, "id", JobVerb::Finalize),
    ),
    command(
        "block-job-change",
        &BLOCK_JOB_CHANGE_OPTIONS,
        NOTHING,
        change,
    ),
];

fn ask(
    context: &mut Context<'_>,
    mut arguments: Object,
    named: &str,
    verb: JobVerb,
) -> Result<Value, QmpError> {
    let id = arguments.required_string(named)?;
    context.daemon.ask_block_job(&id, verb)?;
    done()
}

fn set_speed(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let id = arguments.required_string("device")?;
    let speed = arguments.int64("speed")?.unwrap_or(0);
    context.daemon.set_job_speed(&id, speed)?;
    done()
}

fn cancel(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let id = arguments.required_string("device")?;
    let cancel = match arguments.boolean("force")? {
        Some(true) => Cancel::Force,
        _ => Cancel::Soft,
    };
    context.daemon.cancel_block_job(&id, cancel)?;
    done()
}

fn change(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let id = arguments.required_string("id")?;
    // What is asked of a job of another kind is asked of a mirror in QSD: its first mode.
    let mode = match arguments.required_string("type")?.as_str() {
        "mirror" => arguments.word("copy-mode", COPY_MODES)?,
        _ => None,
    };
    context
        .daemon
        .change_block_job(&id, mode.unwrap_or_default())?;
    done()
}

fn query(context: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    Ok(context.daemon.block_job_list().map(shown).collect())
}

fn shown(shown: BlockJobShown) -> Value {
    let job = shown.job;
    let ready = matches!(job.state, JobState::Ready | JobState::Standby);
    let mut value = json!({
        "type": job.kind.name(),
        "device": job.id,
        "len": job.total,
        "offset": job.current,
        "busy": shown.busy,
        "paused": shown.paused,
        "speed": shown.speed_bytes,
        "io-status": shown.io_status.name(),
        "ready": ready,
        "status": job.state.name(),
        "auto-finalize": shown.finalizes,
        "auto-dismiss": shown.dismisses,
    });
    if job.kind == JobKind::Mirror {
        value["actively-synced"] = shown.synced.into();
    }
    if let Some(error) = job.error {
        value["error"] = error.into();
    }
    value
}
