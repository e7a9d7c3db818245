//! The daemon's entry: arguments in, an exit status out. Everything else is the library's.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use backend::backup;
use backend::cli::{self, Command, Daemonize, Invocation, Outcome, PROGRAM_NAME, Step};
use backend::daemon::{Daemon, serve};
use backend::graph_view;
use backend::process::{self, Background, PidFile};
use ring::inherited::Inherited;
use ring::sys::Signals;

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
    match std::env::args_os().nth(1) {
        Some(word) if word == "graph" => return draw_graph(),
        Some(word) if word == "backup" => return back_up(),
        _ => {}
    }
    let inherited = Inherited::capture().map_err(|e| e.to_string())?;
    let activated = process::activated_fds();
    let outcome = cli::parse(std::env::args_os().skip(1), &activated).map_err(|e| e.to_string())?;
    let invocation = match outcome {
        Outcome::Print(text) => {
            return show(&text);
        }
        Outcome::Run(invocation) => invocation,
    };
    let background = match invocation.daemonize {
        Daemonize::Background => match process::enter_background().map_err(|e| e.to_string())? {
            Background::Parent(code) => return Ok(code),
            Background::Daemon(daemon) => Some(daemon),
        },
        Daemonize::Foreground => None,
    };
    log_to_stderr();
    for notice in &invocation.notices {
        eprintln!("{PROGRAM_NAME}: {notice}");
    }
    start_and_serve(invocation, inherited, background)
}

/// `virtioblkd graph`, which is another program that happens to live here.
fn draw_graph() -> Result<ExitCode, String> {
    let command = graph_view::parse(std::env::args_os().skip(2)).map_err(|e| e.to_string())?;
    match command {
        None => show(graph_view::HELP),
        Some(command) => show(&graph_view::draw(&command).map_err(|e| with_causes(&e))?),
    }
}

/// `virtioblkd backup`, which is one as well.
fn back_up() -> Result<ExitCode, String> {
    let command = backup::parse(std::env::args_os().skip(2)).map_err(|e| e.to_string())?;
    let Some(command) = command else {
        return show(backup::HELP);
    };
    let ends = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    let mut signals =
        Signals::collect(&ends).map_err(|e| format!("cannot collect signals: {e}"))?;
    let mut is_over = || signals.take().is_some();
    let done = backup::run(&command, &mut backup::Progress::new(&mut is_over));
    show(&done.map_err(|e| with_causes(&e))?)
}

/// Not `print!`, which panics when whoever reads has enough (`--help | head`).
fn show(text: &str) -> Result<ExitCode, String> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(|cause| cause.to_string())
        .collect::<Vec<_>>()
        .join(": ")
}

/// Log lines go to stderr: warnings and worse, or what `VIRTIOBLKD_LOG` asks for.
fn log_to_stderr() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("VIRTIOBLKD_LOG").unwrap_or_else(|_| {
            tracing_subscriber::EnvFilter::new("warn,vhost=off,vhost_user_backend=off")
        });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
}

fn start_and_serve(
    invocation: Invocation,
    inherited: Inherited,
    background: Option<process::Daemon>,
) -> Result<ExitCode, String> {
    let wanted = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
    // Before the first thread, so that every thread has them blocked.
    let signals = Signals::collect(&wanted).map_err(|e| format!("cannot collect signals: {e}"))?;
    let mut daemon = Daemon::new(inherited).map_err(|e| e.to_string())?;
    daemon.stop_waiting_for_clients_on(signals.as_raw_fd());
    for step in invocation.steps {
        let Step {
            origin,
            warnings,
            command,
        } = step;
        for warning in warnings {
            eprintln!("{PROGRAM_NAME}: {origin}: {warning}");
        }
        let done = match command {
            Ok(Command::ShowHelp(text)) => return show(&text),
            Ok(command) => daemon.execute(command),
            Err(refusal) => Err(refusal.to_string()),
        };
        done.map_err(|message| format!("{origin}: {message}"))?;
    }
    let pidfile = match &invocation.pidfile {
        Some(path) => Some(PidFile::create(path).map_err(|e| e.to_string())?),
        None => None,
    };
    // A service manager that cannot be told is no reason not to serve.
    if let Err(error) = process::notify_ready() {
        tracing::warn!("cannot tell the service manager: {error}");
    }
    // Last, since with it goes the terminal, and whoever waits for the parent finds everything done.
    if let Some(background) = background {
        background.up().map_err(|e| e.to_string())?;
    }
    let served = serve(&mut daemon, signals)
        .map(drop)
        .map_err(|e| e.to_string());
    let ended = daemon.shut_down().map_err(|e| with_causes(&e));
    drop(pidfile);
    served.and(ended).map(|()| ExitCode::SUCCESS)
}
