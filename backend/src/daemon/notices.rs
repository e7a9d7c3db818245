//! What nodes have to say by themselves, as events of the monitors.

use super::executor::Daemon;
use crate::qmp::events::BLOCK_IMAGE_CORRUPTED;
use blockgraph::notice::{Fatal, Notice};
use serde_json::{Map, Value};

impl Daemon {
    /// Passes on what was posted since the last time.
    pub(super) fn pass_notices_on(&mut self) {
        self.noticed.hush();
        let posted = self.current.get().notices().take();
        for notice in posted.notices {
            self.pass_on(notice);
        }
        if posted.lost > 0 {
            tracing::warn!("{} notices of nodes were lost", posted.lost);
        }
    }

    fn pass_on(&mut self, notice: Notice) {
        match notice {
            Notice::JournalDue => self.look_at_journals(),
            Notice::ImageCorrupted {
                node,
                msg,
                offset,
                size,
                fatal,
            } => {
                let mut data = Map::new();
                data.insert("device".into(), "".into());
                data.insert("node-name".into(), node.into());
                data.insert("msg".into(), msg.into());
                for (name, value) in [("offset", offset), ("size", size)] {
                    if let Some(value) = value {
                        data.insert(name.into(), value.into());
                    }
                }
                data.insert("fatal".into(), (fatal == Fatal::Yes).into());
                self.event(&BLOCK_IMAGE_CORRUPTED, Value::Object(data));
            }
        }
    }
}
