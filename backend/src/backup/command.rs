//! The words behind `virtioblkd backup`.

use lexopt::{Arg, Parser, ValueExt};
use std::ffi::OsString;
use std::path::PathBuf;
use thiserror::Error;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupCommand {
    /// One more backup of a node.
    Make(Make),
    /// An image as it was.
    Restore(Restore),
    /// What there is.
    List(PathBuf),
}

/// How much goes into the next backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What has changed since the last one, where that is known.
    Changes,
    /// All of it.
    Full,
}

/// Is what was written read again and compared?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// With the snapshot, byte by byte.
    Compare,
    /// No.
    Skip,
}

/// A backup to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Make {
    /// The monitor's socket.
    pub socket: PathBuf,
    /// The node.
    pub node: String,
    /// Where backups are kept.
    pub dir: PathBuf,
    /// Where the daemon keeps old data while the backup runs; `None`: there as well.
    pub scratch: Option<PathBuf>,
    /// How much.
    pub extent: Extent,
    /// Is it verified?
    pub verification: Verification,
}

/// An image to be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Where backups are kept.
    pub dir: PathBuf,
    /// The new image.
    pub to: PathBuf,
    /// Which backup; `None`: the last.
    pub point: Option<u64>,
}

/// What `--help` shows.
pub const HELP: &str = "\
Usage: virtioblkd backup --qmp SOCKET --node NODE --to DIR [--full] [--scratch DIR] [--no-verify]
       virtioblkd backup --restore DIR --to IMAGE [--point NUMBER]
       virtioblkd backup --list DIR

Backs up a node of a running virtioblkd or qemu-storage-daemon, as it is at one instant, while its guest goes on: all of
it the first time, later what has changed since the last backup. Each is a qcow2 image on top of the one before.

  --qmp SOCKET     the unix socket of the daemon's QMP monitor
  --node NODE      the node's node-name
  --to DIR         the directory of this node's backups; made if it does not exist
  --full           begin a new chain with all of it
  --scratch DIR    where the daemon keeps data that the guest overwrites meanwhile (default: the same directory)
  --no-verify      do not read the backup again and compare it with the node
  --restore DIR    write the disk as it was, as a new raw image
  --to IMAGE       that image; it must not exist
  --point NUMBER   as it was at that backup (default: the last)
  --list DIR       the backups there are

SIGINT and SIGTERM end it cleanly: nothing stays behind in the daemon, and the next backup misses nothing.
";

/// What is wrong with the words, in one line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("backup: {0}")]
pub struct UsageError(String);

/// Words as they come.
#[derive(Default)]
struct Words {
    qmp: Option<PathBuf>,
    node: Option<String>,
    to: Option<PathBuf>,
    scratch: Option<PathBuf>,
    restore: Option<PathBuf>,
    list: Option<PathBuf>,
    point: Option<u64>,
    full: bool,
    no_verify: bool,
}

/// What the words behind `backup` ask for; `None`: for help. Errors: words that make no sense.
pub fn parse(
    words: impl IntoIterator<Item = OsString>,
) -> Result<Option<BackupCommand>, UsageError> {
    let mut parser = Parser::from_args(words);
    let mut said = Words::default();
    let wrong = |error: lexopt::Error| UsageError(error.to_string());
    while let Some(arg) = parser.next().map_err(wrong)? {
        let path = |parser: &mut Parser| parser.value().map(PathBuf::from).map_err(wrong);
        match arg {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("qmp") => said.qmp = Some(path(&mut parser)?),
            Arg::Long("to") => said.to = Some(path(&mut parser)?),
            Arg::Long("scratch") => said.scratch = Some(path(&mut parser)?),
            Arg::Long("restore") => said.restore = Some(path(&mut parser)?),
            Arg::Long("list") => said.list = Some(path(&mut parser)?),
            Arg::Long("node") => {
                said.node = Some(parser.value().map_err(wrong)?.string().map_err(wrong)?);
            }
            Arg::Long("point") => {
                said.point = Some(parser.value().map_err(wrong)?.parse().map_err(wrong)?);
            }
            Arg::Long("full") => said.full = true,
            Arg::Long("no-verify") => said.no_verify = true,
            other => return Err(wrong(other.unexpected())),
        }
    }
    said.into_command().map(Some)
}

impl Words {
    fn into_command(mut self) -> Result<BackupCommand, UsageError> {
        match (self.restore.take(), self.list.take()) {
            (Some(_), Some(_)) => Err(UsageError("--restore and --list exclude each other".into())),
            (Some(dir), None) => self.into_restore(dir).map(BackupCommand::Restore),
            (None, Some(dir)) => match self.is_empty() {
                true => Ok(BackupCommand::List(dir)),
                false => Err(UsageError("--list takes nothing else".into())),
            },
            (None, None) => self.into_make().map(BackupCommand::Make),
        }
    }

    fn into_restore(mut self, dir: PathBuf) -> Result<Restore, UsageError> {
        let (to, point) = (self.to.take(), self.point.take());
        if !self.is_empty() {
            return Err(UsageError("--restore takes --to and --point alone".into()));
        }
        let to = required(to, "--to IMAGE")?;
        Ok(Restore { dir, to, point })
    }

    fn into_make(self) -> Result<Make, UsageError> {
        if self.point.is_some() {
            return Err(UsageError("--point goes with --restore".into()));
        }
        Ok(Make {
            socket: required(self.qmp, "--qmp SOCKET")?,
            node: required(self.node, "--node NODE")?,
            dir: required(self.to, "--to DIR")?,
            scratch: self.scratch,
            extent: match self.full {
                true => Extent::Full,
                false => Extent::Changes,
            },
            verification: match self.no_verify {
                true => Verification::Skip,
                false => Verification::Compare,
            },
        })
    }

    fn is_empty(&self) -> bool {
        let paths = [&self.qmp, &self.to, &self.scratch];
        paths.iter().all(|path| path.is_none())
            && self.node.is_none()
            && self.point.is_none()
            && !self.full
            && !self.no_verify
    }
}

fn required<T>(value: Option<T>, name: &str) -> Result<T, UsageError> {
    value.ok_or_else(|| UsageError(format!("{name} is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Option<BackupCommand>, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn words_are_understood_or_refused_in_one_line() {
        let make = words("--qmp q --node n --to d").unwrap().unwrap();
        let BackupCommand::Make(make) = make else {
            panic!("{make:?}");
        };
        assert_eq!((make.extent, make.scratch), (Extent::Changes, None));
        assert_eq!(make.verification, Verification::Compare);
        let restore = words("--restore d --to i --point 3").unwrap().unwrap();
        assert!(matches!(restore, BackupCommand::Restore(r) if r.point == Some(3)));
        assert!(matches!(
            words("--list d"),
            Ok(Some(BackupCommand::List(_)))
        ));
        assert_eq!(words("--list d --help"), Ok(None));
        for wrong in [
            "",
            "--qmp q --node n",
            "--qmp q --to d",
            "--node n --to d",
            "--qmp q --node n --to d --point 1",
            "--restore d",
            "--restore d --to i --full",
            "--restore d --to i --point x",
            "--restore d --list d",
            "--list d --node n",
            "--qmp q --node n --to d more",
        ] {
            let error = words(wrong).unwrap_err().to_string();
            assert!(
                error.starts_with("backup: ") && !error.contains('\n'),
                "{wrong}: {error}"
            );
        }
    }
}
