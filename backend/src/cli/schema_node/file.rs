//! `file` and `host_device`.

use crate::cli::error::{Later, Refusal};
use crate::cli::options::{Aio, FileOptions, Locking, NodeCommon};
use crate::cli::visit::Object;

const AIO: &[(&str, Aio)] = &[
    ("threads", Aio::Threads),
    ("native", Aio::Native),
    ("io_uring", Aio::IoUring),
];

const LOCKING: &[(&str, Locking)] = &[
    ("auto", Locking::Auto),
    ("on", Locking::On),
    ("off", Locking::Off),
];

pub(super) fn read(
    o: &mut Object,
    driver: &str,
    common: &NodeCommon,
    later: &mut Later,
) -> Result<FileOptions, Refusal> {
    let filename = o.required_string("filename")?;
    later.check(!filename.is_empty(), || {
        Refusal::new(format!("The '{driver}' block driver requires a file name"))
    });
    let locking = o.word("locking", LOCKING)?.unwrap_or(Locking::Auto);
    let aio = o.word("aio", AIO)?;
    later.check(aio != Some(Aio::Native) || common.cache_direct, || {
        Refusal::new(
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        )
    });
    Ok(FileOptions {
        filename: filename.into(),
        aio,
        locking,
    })
}
