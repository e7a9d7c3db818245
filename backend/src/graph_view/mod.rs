//! `virtioblkd graph`: draws the graph of a running daemon (ours or qemu-storage-daemon) that has a QMP monitor.
//!
//! The rule: it only asks, and it draws what it was told: the same answers make the same picture, byte for byte. What a
//! monitor does not know (another daemon, an older version) is left out of the picture, not made up.

mod answers;
mod command;
mod dot;
mod layout;
mod picture;
mod svg;
mod text;

pub use command::{Format, GraphCommand, HELP, UsageError, parse};

use crate::qmp_client::{Client, ClientError};
use answers::Answers;
use picture::Picture;

/// How many characters a picture may have of one name: what names files is not ours.
const NAME_CHARS_MAX: usize = 60;

/// Asks and draws. Errors: nobody answers, or not as a monitor does.
pub fn draw(command: &GraphCommand) -> Result<String, ClientError> {
    let mut client = Client::connect(&command.socket)?;
    let answers = Answers::ask(&mut client, command.interval)?;
    Ok(render(&answers, command.format))
}

fn render(answers: &Answers, format: Format) -> String {
    let picture = Picture::of(answers);
    match format {
        Format::Text => text::draw(&picture),
        Format::Dot => dot::draw(&picture),
        Format::Svg => svg::draw(&picture),
    }
}

#[cfg(test)]
mod tests;
