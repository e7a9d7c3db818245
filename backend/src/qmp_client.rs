//! A QMP client, as small as it can be: a greeting, the negotiation, then one command after the other.
//!
//! The rule: whoever listens on the socket is not trusted with our memory or our time: a message has a longest length, and
//! each is waited for only so long.

use serde_json::{Map, Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// The longest message: a graph of thousands of nodes is smaller.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;
/// Events that may come before an answer does.
const EVENTS_MAX: usize = 10_000;
/// How long a message is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a monitor is of no use.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to '{path}'")]
    Connect {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or nothing came.
    #[error("the monitor does not answer")]
    Io(#[from] io::Error),
    /// It is no monitor.
    #[error("not a QMP monitor: {0}")]
    NotQmp(&'static str),
    /// It refused a command.
    #[error("{command}: {text}")]
    Refused {
        /// Which.
        command: &'static str,
        /// In its words.
        text: String,
        /// It does not know the command.
        unknown: bool,
    },
}

/// A connection to a monitor that takes commands.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects and negotiates.
    pub(crate) fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
            path: path.display().to_string(),
            source,
        })?;
        Client::on(stream)
    }

    /// Waits longer for each answer than is usual.
    pub(crate) fn be_patient(&mut self, patience: Duration) -> Result<(), ClientError> {
        Ok(self.stream.get_ref().set_read_timeout(Some(patience))?)
    }

    /// Negotiates on a socket.
    pub(crate) fn on(stream: UnixStream) -> Result<Client, ClientError> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Client {
            stream: BufReader::new(stream),
        };
        if client.receive()?.get("QMP").is_none() {
            return Err(ClientError::NotQmp("no greeting"));
        }
        client.ask("qmp_capabilities", Map::new())?;
        Ok(client)
    }

    /// What a command returns.
    pub(crate) fn ask(
        &mut self,
        command: &'static str,
        arguments: Map<String, Value>,
    ) -> Result<Value, ClientError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        for _ in 0..EVENTS_MAX {
            let mut message = self.receive()?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let text = |name| error.get(name).and_then(Value::as_str).unwrap_or_default();
                return Err(ClientError::Refused {
                    command,
                    text: text("desc").to_owned(),
                    unknown: text("class") == "CommandNotFound",
                });
            }
        }
        Err(ClientError::NotQmp("events, and no answer"))
    }

    /// The same; `None` if the monitor does not know the command.
    pub(crate) fn ask_if_known(
        &mut self,
        command: &'static str,
    ) -> Result<Option<Value>, ClientError> {
        match self.ask(command, Map::new()) {
            Ok(value) => Ok(Some(value)),
            Err(ClientError::Refused { unknown: true, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self) -> Result<Value, ClientError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MESSAGE_BYTES_MAX);
        limited.read_until(b'\n', &mut line)?;
        match line.last() {
            Some(b'\n') => {}
            Some(_) if line.len() as u64 == MESSAGE_BYTES_MAX => {
                return Err(ClientError::NotQmp("a message without end"));
            }
            _ => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
        let message: Value =
            serde_json::from_slice(&line).map_err(|_| ClientError::NotQmp("no JSON"))?;
        match message.is_object() {
            true => Ok(message),
            false => Err(ClientError::NotQmp("no object")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of connecting to somebody who says that, and of one command.
    fn talk(says: &'static [u8]) -> Result<Value, ClientError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || {
            theirs.write_all(says).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let mut heard = String::new();
            let _ = theirs.read_to_string(&mut heard);
            heard
        });
        let said = Client::on(ours).and_then(|mut client| client.ask("query-jobs", Map::new()));
        other.join().unwrap();
        said
    }

    #[test]
    fn events_are_passed_over_and_refusals_told() {
        let fine =
            talk(b"{\"QMP\":{}}\r\n{\"return\":{}}\r\n{\"event\":\"X\"}\n{\"return\":[1]}\n");
        assert_eq!(fine.unwrap(), json!([1]));
        let refused = talk(
            b"{\"QMP\":{}}\n{\"return\":{}}\n{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"no\"}}\n",
        );
        let refused = refused.unwrap_err();
        assert_eq!(refused.to_string(), "query-jobs: no");
        assert!(matches!(
            refused,
            ClientError::Refused { unknown: true, .. }
        ));
    }

    #[test]
    fn whoever_is_no_monitor_is_told_from_one() {
        for (says, why) in [
            (&b"SSH-2.0\r\n"[..], "not a QMP monitor: no JSON"),
            (b"[]\n", "not a QMP monitor: no object"),
            (b"{}\n", "not a QMP monitor: no greeting"),
            (b"{\"QMP\":{}}\n", "the monitor does not answer"),
            (b"{\"QMP\":{}}\n{\"ret", "the monitor does not answer"),
            (b"", "the monitor does not answer"),
        ] {
            assert_eq!(talk(says).unwrap_err().to_string(), why);
        }
    }
}
