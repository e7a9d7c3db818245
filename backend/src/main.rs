//! The daemon's entry: arguments in, an exit status out. Everything else is the library's.

use std::process::ExitCode;

use backend::cli::{self, Outcome, PROGRAM_NAME};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{PROGRAM_NAME}: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let outcome = cli::parse(std::env::args_os().skip(1), &[]).map_err(|e| e.to_string())?;
    let invocation = match outcome {
        Outcome::Print(text) => {
            print!("{text}");
            return Ok(());
        }
        Outcome::Run(invocation) => invocation,
    };
    for notice in &invocation.notices {
        eprintln!("{PROGRAM_NAME}: {notice}");
    }
    for step in invocation.steps {
        let origin = step.origin;
        match step.command {
            Ok(cli::Command::ShowHelp(text)) => {
                print!("{text}");
                return Ok(());
            }
            Ok(_) => return Err(format!("{origin}: this build cannot execute it")),
            Err(refusal) => return Err(format!("{origin}: {refusal}")),
        }
    }
    Ok(())
}
