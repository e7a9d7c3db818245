//! The backend program conventions (docs/interop/vhost-user.rst): one file, one socket, no graph to write down. They become the same steps as the
//! long form.
//!
//! The one rule: the format is never guessed from the file's bytes, since a guest can write those.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::error::Refusal;
use super::getopt::{Name, Word};
use super::options::{
    BlockdevOptions, Command, Discard, DriverOptions, ExportAddress, ExportKind, ExportOptions,
    FileOptions, Given, Locking, NUM_QUEUES_DEFAULT, NodeCommon, Step, VhostUserBlkOptions,
};
use super::schema_export::UNIX_PATH_LEN_BYTES;

/// The node and the export that these options make.
const NODE_NAME: &str = "disk";

/// Endings of file names that say that the file is not raw.
const OTHER_FORMATS: &[(&str, &str)] = &[
    ("qcow2", "qcow2"),
    ("qcow", "qcow"),
    ("qed", "qed"),
    ("vdi", "vdi"),
    ("vhd", "vpc"),
    ("vpc", "vpc"),
    ("vhdx", "vhdx"),
    ("vmdk", "vmdk"),
];

/// What was said of one disk.
#[derive(Debug, Default)]
pub(super) struct Program {
    blk_file: Option<Said>,
    format: Option<Said>,
    socket_path: Option<Said>,
    fd: Option<Said>,
    read_only: bool,
}

#[derive(Debug)]
struct Said {
    value: OsString,
    origin: String,
}

/// What the options of one disk come to.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) steps: Vec<Step>,
    pub(super) notice: Option<String>,
}

impl Program {
    /// Takes one of our own options; any other is handed back.
    ///
    /// # Errors
    /// An option given twice.
    pub(super) fn take(&mut self, word: Word) -> Result<Option<Word>, Refusal> {
        let place = match word.name {
            Name::BlkFile => &mut self.blk_file,
            Name::Format => &mut self.format,
            Name::SocketPath => &mut self.socket_path,
            Name::Fd => &mut self.fd,
            Name::ReadOnly => {
                self.read_only = true;
                return Ok(None);
            }
            _ => return Ok(Some(word)),
        };
        if place.is_some() {
            return Err(Refusal::new(format!(
                "{}: may be given only once",
                word.origin
            )));
        }
        *place = Some(Said {
            value: word.value,
            origin: word.origin,
        });
        Ok(None)
    }

    fn is_empty(&self) -> bool {
        let said = [&self.blk_file, &self.format, &self.socket_path, &self.fd];
        !self.read_only && said.iter().all(|said| said.is_none())
    }

    /// The steps, `None` if no option of this form was given. `activated` are the sockets that the service manager passed.
    ///
    /// # Errors
    /// Something missing, contradictory, or a format that cannot be served.
    pub(super) fn into_disk(self, activated: &[RawFd]) -> Result<Option<Disk>, Refusal> {
        if self.is_empty() {
            return Ok(None);
        }
        let Some(file) = &self.blk_file else {
            return Err(Refusal::new(
                "--socket-path, --fd, --read-only and --format need --blk-file",
            ));
        };
        let (addr, addr_origin) = self.address(activated)?;
        let notice = self.check_format(file)?;
        let node = Step {
            warnings: Vec::new(),
            origin: file.origin.clone(),
            command: Ok(Command::Blockdev(self.node(Path::new(&file.value)))),
        };
        let export = Step {
            warnings: Vec::new(),
            origin: addr_origin,
            command: Ok(Command::Export(self.export(addr))),
        };
        Ok(Some(Disk {
            steps: vec![node, export],
            notice,
        }))
    }

    fn address(&self, activated: &[RawFd]) -> Result<(ExportAddress, String), Refusal> {
        match (&self.socket_path, &self.fd, activated) {
            (Some(_), Some(_), _) => Err(Refusal::new(
                "--socket-path and --fd cannot be used at the same time",
            )),
            (Some(path), None, _) => Ok((unix(path)?, path.origin.clone())),
            (None, Some(fd), _) => Ok((connected(fd)?, fd.origin.clone())),
            (None, None, &[fd]) => Ok((
                ExportAddress::ListeningFd(fd),
                format!("socket activation: file descriptor {fd}"),
            )),
            (None, None, []) => Err(Refusal::new(
                "--blk-file needs --socket-path, --fd, or a socket from the service manager",
            )),
            (None, None, several) => Err(Refusal::new(format!(
                "--blk-file can use one socket from the service manager, not {}",
                several.len()
            ))),
        }
    }

    /// What to say about the format, or why it cannot be served.
    fn check_format(&self, file: &Said) -> Result<Option<String>, Refusal> {
        if let Some(format) = &self.format {
            return match format.value.to_str() {
                Some("raw") => Ok(None),
                Some(other) if is_known(other) => Err(Refusal::new(format!(
                    "{}: format '{other}' is not supported by this version",
                    format.origin
                ))),
                _ => Err(Refusal::new(format!(
                    "{}: unknown format, expected 'raw'",
                    format.origin
                ))),
            };
        }
        match format_of_name(Path::new(&file.value)) {
            None => Ok(Some(format!(
                "{}: serving it as raw; say --format raw to silence this",
                file.origin
            ))),
            Some(format) => Err(Refusal::new(format!(
                "{}: by its name this is a {format} image, which is not supported by this version; \
                 --format raw serves its bytes as they are",
                file.origin
            ))),
        }
    }

    fn node(&self, path: &Path) -> BlockdevOptions {
        let file = FileOptions {
            filename: path.to_owned(),
            aio: None,
            locking: Locking::Auto,
        };
        // The one question put to the world here; a path that cannot be looked at fails when it is opened.
        let is_block_device = path
            .metadata()
            .is_ok_and(|metadata| metadata.file_type().is_block_device());
        BlockdevOptions {
            node_name: Some(NODE_NAME.to_owned()),
            common: NodeCommon {
                discard: Discard::Unmap,
                read_only: self.read_only,
                ..NodeCommon::ROOT
            },
            driver: match is_block_device {
                true => DriverOptions::HostDevice(file),
                false => DriverOptions::File(file),
            },
            given: Given::nothing(),
        }
    }

    fn export(&self, addr: ExportAddress) -> ExportOptions {
        ExportOptions {
            id: NODE_NAME.to_owned(),
            node_name: NODE_NAME.to_owned(),
            writable: !self.read_only,
            allow_inactive: false,
            writethrough: false,
            iothread: None,
            fixed_iothread: false,
            kind: ExportKind::VhostUserBlk(VhostUserBlkOptions {
                addr,
                logical_block_size_bytes: None,
                num_queues: NUM_QUEUES_DEFAULT,
                serial: None,
                require_safe_del: false,
            }),
        }
    }
}

fn unix(path: &Said) -> Result<ExportAddress, Refusal> {
    if path.value.is_empty() {
        return Err(Refusal::new(format!("{}: empty path", path.origin)));
    }
    if path.value.as_bytes().len() >= UNIX_PATH_LEN_BYTES {
        return Err(Refusal::new(format!(
            "{}: the path must be less than {UNIX_PATH_LEN_BYTES} bytes",
            path.origin
        )));
    }
    Ok(ExportAddress::Unix(PathBuf::from(&path.value)))
}

fn connected(fd: &Said) -> Result<ExportAddress, Refusal> {
    let number = fd.value.to_str().and_then(|text| text.parse::<u16>().ok());
    match number {
        Some(number) => Ok(ExportAddress::ConnectedFd(number.into())),
        None => Err(Refusal::new(format!(
            "{}: not a file descriptor number",
            fd.origin
        ))),
    }
}

fn is_known(format: &str) -> bool {
    OTHER_FORMATS.iter().any(|(_, known)| *known == format)
}

fn format_of_name(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    let found = OTHER_FORMATS.iter().find(|(known, _)| *known == ending);
    found.map(|(_, format)| *format)
}
