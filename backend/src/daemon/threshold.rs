//! `block-set-write-threshold`: an event with the first write beyond a point.
//!
//! The rule: the thread of the write leaves a note and rings; the control thread tells clients.

use super::executor::{Daemon, Note};
use crate::qmp::events::BLOCK_WRITE_THRESHOLD;
use blockgraph::graph::threshold::{self, WriteThreshold};
use serde_json::json;

impl Daemon {
    /// Sets the threshold of a node, or takes it away with 0. Errors: there is no such node.
    pub(crate) fn set_write_threshold(&mut self, name: &str, at_bytes: u64) -> Result<(), String> {
        let node = self.current.get().find(name);
        let node = node.ok_or_else(|| format!("Device '{name}' not found"))?;
        let (news, name) = (self.news.clone(), name.to_owned());
        let tell = Box::new(move |exceeded_bytes| {
            let node = name.clone();
            news.note(Note::Threshold {
                node,
                at_bytes,
                exceeded_bytes,
            });
        });
        let set = (at_bytes > 0).then(|| WriteThreshold::new(at_bytes, tell));
        threshold::set(&self.current, node, set);
        Ok(())
    }

    /// What threads have noted since.
    pub(super) fn take_notes(&mut self) {
        while let Some(note) = self.news.next_note() {
            match note {
                Note::Threshold {
                    node,
                    at_bytes,
                    exceeded_bytes,
                } => {
                    self.forget_threshold(&node);
                    let data = json!({
                        "node-name": node, "amount-exceeded": exceeded_bytes, "write-threshold": at_bytes,
                    });
                    self.event(&BLOCK_WRITE_THRESHOLD, data);
                }
            }
        }
    }

    /// It has fired: the node's writes may be mapped again, unless somebody set another one meanwhile.
    fn forget_threshold(&mut self, name: &str) {
        let graph = self.current.get();
        if let Some(id) = graph.find(name)
            && graph
                .node(id)
                .is_some_and(|node| node.write_threshold() == 0)
        {
            drop(graph);
            threshold::set(&self.current, id, None);
        }
    }
}
