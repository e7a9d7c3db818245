//! Commands about jobs, and those that start them.

use super::{Command, NOTHING, command, done};
use crate::cli::{self, Object};
use crate::qapi::Type;
use crate::qapi::tables::EMPTY;
use crate::qapi::tables::create::BLOCKDEV_CREATE_ARG;
use crate::qapi::tables::jobs::{
    JOB_CANCEL_ARG, JOB_COMPLETE_ARG, JOB_DISMISS_ARG, JOB_FINALIZE_ARG, JOB_INFO, JOB_PAUSE_ARG,
    JOB_RESUME_ARG,
};
use crate::qmp::{Context, QmpError};
use blockgraph::job::JobVerb;
use serde_json::{Map, Value};

pub(super) static COMMANDS: &[Command] = &[
    command("blockdev-create", &BLOCKDEV_CREATE_ARG, NOTHING, create),
    command(
        "query-jobs",
        &EMPTY,
        Type::Array(&Type::Object(&JOB_INFO)),
        query,
    ),
    command("job-pause", &JOB_PAUSE_ARG, NOTHING, |c, a| {
        ask(c, a, JobVerb::Pause)
    }),
    command("job-resume", &JOB_RESUME_ARG, NOTHING, |c, a| {
        ask(c, a, JobVerb::Resume)
    }),
    command("job-cancel", &JOB_CANCEL_ARG, NOTHING, |c, a| {
        ask(c, a, JobVerb::Cancel)
    }),
    command("job-complete", &JOB_COMPLETE_ARG, NOTHING, |c, a| {
        ask(c, a, JobVerb::Complete)
    }),
    command("job-finalize", &JOB_FINALIZE_ARG, NOTHING, |c, a| {
        ask(c, a, JobVerb::Finalize)
    }),
    command("job-dismiss", &JOB_DISMISS_ARG, NOTHING, |c, a| {
        ask(c, a, JobVerb::Dismiss)
    }),
];

fn ask(context: &mut Context<'_>, mut arguments: Object, verb: JobVerb) -> Result<Value, QmpError> {
    let id = arguments.required_string("id")?;
    context.daemon.ask_job(&id, verb)?;
    done()
}

fn create(context: &mut Context<'_>, mut arguments: Object) -> Result<Value, QmpError> {
    let job = arguments.required_string("job-id")?;
    let image = cli::image_to_create(arguments.required_object("options")?)?;
    context.daemon.create_image(&job, image)?;
    done()
}

fn query(context: &mut Context<'_>, _: Object) -> Result<Value, QmpError> {
    let jobs = context.daemon.job_list().map(|job| {
        let mut shown = Map::new();
        shown.insert("current-progress".into(), job.current.into());
        shown.insert("status".into(), job.state.name().into());
        shown.insert("total-progress".into(), job.total.into());
        shown.insert("type".into(), job.kind.name().into());
        shown.insert("id".into(), job.id.into());
        if let Some(error) = job.error {
            shown.insert("error".into(), error.into());
        }
        Value::Object(shown)
    });
    Ok(Value::Array(jobs.collect()))
}
