//! A client of a monitor, ours or QEMU's: commands and their answers, and the events that came meanwhile.
//!
//! The rule to know: `execute` returns what a command answered, well or badly; a connection that breaks or stays silent is a
//! failed test, and panics.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an answer may take on a machine that is busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A client that has negotiated.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// What came of a line that is not whole yet.
    line: Vec<u8>,
    greeting: Value,
    events: VecDeque<Value>,
    executed: u64,
}

impl Qmp {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// Those of connecting and reading; nobody greets in time.
    pub fn connect(path: &Path) -> io::Result<Qmp> {
        let stream = UnixStream::connect(path)?;
        let mut qmp = Qmp {
            reader: BufReader::new(stream),
            line: Vec::new(),
            greeting: Value::Null,
            events: VecDeque::new(),
            executed: 0,
        };
        qmp.greeting = qmp.read(Instant::now() + ANSWER_LIMIT)?;
        qmp.send(&json!({"execute": "qmp_capabilities"}))?;
        // Now and then, QSD greets whoever comes early twice.
        while qmp.read(Instant::now() + ANSWER_LIMIT)?["QMP"].is_object() {}
        Ok(qmp)
    }

    /// What the monitor said first.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Executes a command; `Value::Null` stands for no arguments. Errors: what the monitor answered (`class` and `desc`).
    ///
    /// # Panics
    /// When the connection breaks, or there is no answer in time.
    pub fn execute(&mut self, name: &str, arguments: Value) -> Result<Value, Value> {
        let answered = self.try_execute(name, &arguments);
        answered.unwrap_or_else(|error| panic!("{name} {arguments}: {error}"))
    }

    /// The same where it has to succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn succeed(&mut self, name: &str, arguments: Value) -> Value {
        let shown = arguments.clone();
        let answer = self.execute(name, arguments);
        answer.unwrap_or_else(|error| panic!("{name} {shown}: {error}"))
    }

    /// The text of the error that a command has to end in.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn refusal(&mut self, name: &str, arguments: Value) -> String {
        let shown = arguments.clone();
        match self.execute(name, arguments) {
            Ok(answer) => panic!("{name} {shown} succeeded: {answer}"),
            Err(error) => error["desc"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// The same, with errors of the connection returned.
    ///
    /// # Errors
    /// The connection broke; there is no answer in time.
    pub fn try_execute(
        &mut self,
        name: &str,
        arguments: &Value,
    ) -> io::Result<Result<Value, Value>> {
        self.executed += 1;
        let id = self.executed;
        let mut message = json!({"execute": name, "id": id});
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        self.send(&message)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let mut message = self.read(deadline)?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if message["id"] == id {
                return Ok(match message.get_mut("error") {
                    Some(error) => Err(error.take()),
                    None => Ok(message["return"].take()),
                });
            } else {
                return Err(io::Error::other(format!(
                    "not an answer to that: {message}"
                )));
            }
        }
    }

    /// The next event of that name, and nothing before it that was of another.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn event(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => Ok(event),
                None => self.read(deadline),
            };
            let event = event.unwrap_or_else(|error| panic!("waiting for {name}: {error}"));
            if event["event"] == name {
                return event;
            }
        }
    }

    /// Every event that came before the last answer and was not asked for yet.
    pub fn events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    /// Sends a message as it is, without waiting for anything.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, message: &Value) -> io::Result<()> {
        self.send_raw(&format!("{message}\n"))
    }

    /// The same with any text.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send_raw(&mut self, text: &str) -> io::Result<()> {
        self.reader.get_mut().write_all(text.as_bytes())
    }

    /// The next message, whatever it is.
    ///
    /// # Errors
    /// The connection broke or ended; nothing comes in time; it is no JSON.
    pub fn read(&mut self, deadline: Instant) -> io::Result<Value> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.line);
                    return serde_json::from_slice(&line).map_err(io::Error::other);
                }
                Ok(_) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
