//! The end of a job whose images are on another backing file from now on.
//!
//! The rule: what an image will be read with has to be durable before the image says so, or a crash in between shows what was never
//! written.

use crate::driver::qcow2::format::header::Backing;
use crate::graph::Body;
use crate::io::Io;
use crate::node::{NodeId, Outcome};
use crate::request::{Kind, Request};
use crate::units::Span;
use ring::Errno;

/// Makes everything durable that was written to `durable`, and then has `image` name another backing file, or none. Errors: ENOTSUP
/// for an image of another format.
pub async fn rename_backing(
    io: &Io,
    durable: NodeId,
    image: NodeId,
    backing: Option<Backing>,
) -> Outcome {
    let Some(Body::Driver(driver)) = io.graph().node(image).map(|node| node.body().clone()) else {
        return Err(Errno::NOTSUP);
    };
    let qcow2 = driver.as_qcow2().ok_or(Errno::NOTSUP)?;
    let nothing = Span { at: 0, len: 0 };
    io.request(durable, Request::plain(Kind::Flush, nothing))
        .await?;
    qcow2.rename_backing(&io.at(image), backing).await
}
