//! A client of a monitor, as an operator's script is one: asks, and waits for the answer.
//!
//! The rule: events that come in between are kept, in order, for whoever wants them.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection to a monitor.
#[derive(Debug)]
pub struct Operator {
    stream: BufReader<UnixStream>,
    /// Events that have come, oldest first.
    pub events: Vec<Value>,
    /// The longest that any answer took.
    pub slowest: Duration,
}

impl Operator {
    /// Connects, waiting for the socket to be there, and ends the negotiation.
    ///
    /// # Errors
    /// Where nobody listens in time, or who does speaks something else.
    pub fn connect(socket: &Path) -> io::Result<Operator> {
        let until = crate::client::deadline();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut operator = Operator {
            stream: BufReader::new(stream),
            events: Vec::new(),
            slowest: Duration::ZERO,
        };
        operator.line()?;
        writeln!(
            operator.stream.get_mut(),
            r#"{{"execute": "qmp_capabilities"}}"#
        )?;
        // Now and then, QSD greets whoever comes early twice.
        while operator.line()?["QMP"].is_object() {}
        Ok(operator)
    }

    fn line(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Asks; what is returned, or the description of the error.
    ///
    /// # Panics
    /// Where no answer comes.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({"execute": command, "arguments": arguments});
        let begun = Instant::now();
        // In one piece: a daemon may be gone before the end of a line that asks it to quit.
        let line = format!("{request}\n");
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .expect("sent");
        loop {
            let line = self.line();
            let mut answer = line.unwrap_or_else(|error| panic!("{request}: {error}"));
            if answer.get("event").is_some() {
                self.events.push(answer);
                continue;
            }
            self.slowest = self.slowest.max(begun.elapsed());
            return match answer.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(answer["error"]["desc"].as_str().unwrap_or("?").to_owned()),
            };
        }
    }

    /// Asks for what has to be done.
    ///
    /// # Panics
    /// Where it is refused.
    pub fn ok(&mut self, command: &str, arguments: Value) -> Value {
        let said = self.ask(command, &arguments);
        said.unwrap_or_else(|why| panic!("{command} {arguments}: {why}"))
    }

    /// Asks for what has to be refused, in these words.
    ///
    /// # Panics
    /// Where it is not.
    pub fn refused(&mut self, command: &str, arguments: Value, why: &str) {
        let said = self.ask(command, &arguments);
        assert_eq!(said, Err(why.to_owned()), "{command} {arguments}");
    }
}
