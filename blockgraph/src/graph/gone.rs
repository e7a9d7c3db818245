//! Files of nodes that left the graph, for threads that may have them open still.
//!
//! The rule: a thread closes what is gone when it adopts a generation that says so, and may skip generations. So a file is named
//! until nobody is on a generation any more that did not say so yet.

use ring::{File, FileId};
use std::sync::Arc;

/// By the first generation that says so.
#[derive(Clone, Debug, Default)]
pub(super) struct Gone {
    since: Vec<u64>,
    files: Vec<FileId>,
}

impl Gone {
    pub(super) fn files(&self) -> &[FileId] {
        &self.files
    }

    /// Those are gone from generation `since` on, too.
    pub(super) fn add<'a>(&mut self, since: u64, files: impl Iterator<Item = &'a Arc<File>>) {
        self.files.extend(files.map(|file| file.id()));
        self.since.resize(self.files.len(), since);
    }

    /// Nobody is on a generation before `oldest`.
    pub(super) fn prune(&mut self, oldest: u64) {
        // They were added in the order of generations.
        let known = self.since.partition_point(|since| *since <= oldest);
        self.since.drain(..known);
        self.files.drain(..known);
    }
}

#[cfg(test)]
mod tests {
    use super::super::edit::Edit;
    use super::super::{Body, Common, Control, Current, NewNode, Shape};
    use crate::driver::null::{Null, Reads};
    use crate::lane::Lane;
    use crate::mode::Mode;
    use crate::pin::Epochs;
    use ring::{Align, Choice, File, FileId, Ring};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    /// The thread skips the generation that names the file first, and closes it all the same.
    #[test]
    fn a_file_that_every_thread_has_closed_is_named_no_longer() {
        let (current, epochs) = (Arc::<Current>::default(), Arc::<Epochs>::default());
        let mut control =
            Control::new(current.clone(), epochs.clone(), Choice::Threads).expect("a ring");
        let ring = Ring::new(Choice::Threads).expect("a ring");
        let mut lane = Lane::new(ring, current.clone(), epochs, Mode::Fast);
        let mut before: Option<Arc<File>> = None;
        for round in 0..20 {
            let mut graph = current.get().kept();
            let file = Arc::new(file(graph.new_file_id()));
            graph.insert(node(file.clone()));
            drop(current.publish(graph));
            adopt(&mut lane);
            assert!(Arc::strong_count(&file) > 1, "round {round}: it is open");
            let closed = before.is_none_or(|file| Arc::strong_count(&file) == 1);
            assert!(closed, "round {round}");
            let mut edit = Edit::begin(&current);
            edit.drop_unused();
            let (graph, leaving) = edit.commit().expect("committed");
            drop(graph);
            adopt(&mut lane);
            let deadline = Instant::now() + Duration::from_secs(20);
            leaving.finish(&mut control, deadline).expect("finished");
            assert!(current.get().gone().contains(&file.id()));
            assert!(current.get().gone().len() <= 2, "round {round}");
            before = Some(file);
        }
    }

    fn adopt(lane: &mut Lane) {
        lane.begin_batch();
        lane.end_batch();
    }

    fn file(id: FileId) -> File {
        let file = tempfile::tempfile().expect("a file");
        File::new(id, file.into(), Align::NONE)
    }

    fn node(file: Arc<File>) -> NewNode {
        NewNode {
            name: "n".to_owned(),
            kind: "null-co",
            common: Common::default(),
            body: Body::Driver(Arc::new(Null::new(512, Reads::Zeroes, 0))),
            shape: Shape::Leaf,
            files: vec![file],
        }
    }
}
