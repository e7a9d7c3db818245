//! Nodes from the daemon's own options, for tests that open them without a daemon.

use backend::cli::{self, Command};
use blockgraph::graph::open::NodeSpec;

/// What the daemon makes of the value of a `--blockdev`.
///
/// # Errors
/// What it would say of it.
pub fn node_spec(options: &str) -> Result<NodeSpec, String> {
    let words = ["--blockdev".into(), options.into()];
    let parsed = cli::parse(words, &[]).map_err(|refusal| refusal.to_string())?;
    let cli::Outcome::Run(mut invocation) = parsed else {
        return Err(format!("{options}: not a node"));
    };
    let step = invocation.steps.pop().ok_or("no step")?;
    match step.command {
        Ok(Command::Blockdev(node)) => {
            backend::open::node_spec(node).map_err(|refusal| format!("{options}: {refusal}"))
        }
        Ok(_) => Err(format!("{options}: not a node")),
        Err(refusal) => Err(format!("{options}: {refusal}")),
    }
}
