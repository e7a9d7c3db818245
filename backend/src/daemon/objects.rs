//! Objects of every type, by id: iothreads, throttle groups, TLS credentials.
//!
//! The rule: an id is one object's, whatever its type, and an object that is in use stays.

use super::executor::Daemon;
use crate::cli::{ObjectOptions, TlsCredsX509Options};
use crate::open;
use crate::queue::Polling;
use blockgraph::filter::throttle::Group;
use std::sync::Arc;

/// An object, by its type.
#[derive(Debug)]
pub(crate) enum ObjectShown<'a> {
    /// `iothread`
    Iothread(&'a Polling),
    /// `throttle-group`
    ThrottleGroup(Arc<Group>),
    /// `tls-creds-x509`
    TlsCredsX509(&'a TlsCredsX509Options),
}

impl Daemon {
    /// Makes an object. Errors: the id is taken; what is wrong with it, in QSD's words.
    pub(super) fn add_object(&mut self, options: ObjectOptions) -> Result<(), String> {
        let id = match &options {
            ObjectOptions::Iothread(options) => &options.id,
            ObjectOptions::ThrottleGroup(options) => &options.id,
            ObjectOptions::TlsCredsX509(options) => &options.id,
        };
        if self.object(id).is_some() {
            return Err(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            ));
        }
        match options {
            ObjectOptions::Iothread(options) => self.teams.add_iothread(options),
            ObjectOptions::TlsCredsX509(options) => self.add_tls_creds(options)?,
            ObjectOptions::ThrottleGroup(options) => {
                let limits = open::throttle_limits(&options.limits);
                let groups = self.current.get();
                let added = groups.throttle_groups().add(&options.id, limits);
                added.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// Removes an object. Errors: there is none, or it is in use; in QSD's words.
    pub(crate) fn remove_object(&mut self, id: &str) -> Result<(), String> {
        let in_use = || format!("object '{id}' is in use, can not be deleted");
        match self.object(id) {
            None => return Err(format!("object '{id}' not found")),
            // QEMU takes the thread away from whoever uses it, which then hangs.
            Some(ObjectShown::Iothread(_)) if self.is_iothread_used(id) => return Err(in_use()),
            Some(ObjectShown::Iothread(_)) => self.teams.remove_iothread(id),
            Some(ObjectShown::ThrottleGroup(group)) => {
                drop(group);
                let groups = self.current.get();
                let removed = groups.throttle_groups().remove(id);
                removed.map_err(|error| error.to_string())?;
            }
            Some(ObjectShown::TlsCredsX509(_)) => {
                self.nbd.remove_creds(id);
                self.control.resources.remove_creds(id);
            }
        }
        Ok(())
    }

    fn is_iothread_used(&self, id: &str) -> bool {
        let mut exports = self.exports.iter().chain(self.leaving_exports());
        exports.any(|export| export.iothread.as_deref() == Some(id))
    }

    /// The object of that id.
    pub(crate) fn object(&self, id: &str) -> Option<ObjectShown<'_>> {
        if let Some(polling) = self.teams.iothread(id) {
            return Some(ObjectShown::Iothread(polling));
        }
        if let Some(creds) = self.nbd.creds(id) {
            return Some(ObjectShown::TlsCredsX509(&creds.options));
        }
        let group = self.current.get().throttle_groups().get(id);
        group.ok().map(ObjectShown::ThrottleGroup)
    }

    /// Every object's id.
    pub(crate) fn object_ids(&self) -> Vec<String> {
        let groups = self.current.get().throttle_groups().names();
        let others = self.teams.iothreads().chain(self.nbd.creds_ids());
        groups
            .into_iter()
            .chain(others.map(str::to_owned))
            .collect()
    }
}
