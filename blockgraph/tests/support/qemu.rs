//! QEMU's tools as the judge of images.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool in `dir`.
pub fn run(dir: &Path, tool: &str, args: &[&str]) -> Output {
    let mut command = Command::new(tool);
    command.current_dir(dir).args(args);
    command
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}"))
}

/// Runs a tool that must succeed; what it printed.
pub fn ok(dir: &Path, tool: &str, args: &[&str]) -> String {
    let output = run(dir, tool, args);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{tool} {args:?}: {said}{errors}");
    said
}

/// The image has neither errors nor leaks.
pub fn check(dir: &Path, image: &str) {
    ok(dir, "qemu-img", &["check", "-q", "-f", "qcow2", image]);
}

/// Runs commands of qemu-io that must all work.
pub fn io(dir: &Path, image: &str, commands: &[&str]) -> String {
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(image);
    let said = ok(dir, "qemu-io", &args);
    assert!(!said.contains("fail"), "{commands:?}: {said}");
    said
}

/// `qemu-img info`, less names, host sizes and the file below.
pub fn info(dir: &Path, image: &str) -> String {
    let info = ok(
        dir,
        "qemu-img",
        &["info", "--output=json", "-f", "qcow2", image],
    );
    let mut kept = Vec::new();
    let mut in_children = false;
    for line in info.lines() {
        in_children |= line.starts_with("    \"children\": [");
        let dropped = ["\"filename\"", "\"actual-size\""];
        if !in_children && !dropped.iter().any(|key| line.trim_start().starts_with(key)) {
            kept.push(line);
        }
        in_children &= !line.starts_with("    ]");
    }
    let kept = kept.join("\n");
    assert!(kept.contains("\"format-specific\""), "{kept}");
    kept
}
