//! The daemon's entry: arguments in, an exit status out. Everything else is the library's.

use std::io::{self, Write};
use std::process::ExitCode;

use backend::cli::{self, Command, Daemonize, Invocation, Outcome, PROGRAM_NAME};
use backend::process::{self, Background};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{PROGRAM_NAME}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let activated = process::activated_fds();
    let outcome = cli::parse(std::env::args_os().skip(1), &activated).map_err(|e| e.to_string())?;
    let invocation = match outcome {
        Outcome::Print(text) => {
            return show(&text);
        }
        Outcome::Run(invocation) => invocation,
    };
    let background = match invocation.daemonize {
        Daemonize::Background => Some(process::enter_background().map_err(|e| e.to_string())?),
        Daemonize::Foreground => None,
    };
    if let Some(Background::Parent(code)) = background {
        return Ok(code);
    }
    for notice in &invocation.notices {
        eprintln!("{PROGRAM_NAME}: {notice}");
    }
    first_step(invocation)
}

/// Not `print!`, which panics when whoever reads has enough (`--help | head`).
fn show(text: &str) -> Result<ExitCode, String> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Executing comes with the daemon; until then the first step that would need it says so.
fn first_step(invocation: Invocation) -> Result<ExitCode, String> {
    let Some(step) = invocation.steps.into_iter().next() else {
        return Err("nothing to do".to_owned());
    };
    match step.command {
        Ok(Command::ShowHelp(text)) => show(&text),
        Ok(_) => Err(format!("{}: this build cannot execute it", step.origin)),
        Err(refusal) => Err(format!("{}: {refusal}", step.origin)),
    }
}
