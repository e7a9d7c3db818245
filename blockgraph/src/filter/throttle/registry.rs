//! The throttle groups of a process, by name.
//!
//! The rule: a group lives as long as its object or one of its members; its object cannot go while it has members.

use super::group::Group;
use super::limits::{Limits, LimitsError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Why a group cannot be had, made or removed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GroupError {
    /// There is none of that name.
    #[error("Throttle group '{0}' does not exist")]
    Unknown(String),
    /// There is one already.
    #[error("A group with this name already exists")]
    Exists,
    /// It has members.
    #[error("object '{0}' is in use, can not be deleted")]
    InUse(String),
    /// Its limits make no sense.
    #[error(transparent)]
    Limits(#[from] LimitsError),
}

/// All throttle groups. Cheap to clone; the clones are one.
#[derive(Clone, Debug, Default)]
pub struct ThrottleGroups(Arc<Mutex<BTreeMap<String, Arc<Group>>>>);

impl ThrottleGroups {
    /// Makes a group. Errors: the name is taken, the limits make no sense.
    pub fn add(&self, name: &str, limits: Limits) -> Result<Arc<Group>, GroupError> {
        let group = Arc::new(Group::new(name, limits)?);
        let mut groups = self.groups();
        if groups.contains_key(name) {
            return Err(GroupError::Exists);
        }
        groups.insert(name.to_owned(), group.clone());
        Ok(group)
    }

    /// The group of that name.
    pub fn get(&self, name: &str) -> Result<Arc<Group>, GroupError> {
        let group = self.groups().get(name).cloned();
        group.ok_or_else(|| GroupError::Unknown(name.to_owned()))
    }

    /// Removes a group nobody uses. Errors: there is none, or it has members.
    pub fn remove(&self, name: &str) -> Result<(), GroupError> {
        let mut groups = self.groups();
        let group = groups.get(name);
        let group = group.ok_or_else(|| GroupError::Unknown(name.to_owned()))?;
        if Arc::strong_count(group) > 1 {
            return Err(GroupError::InUse(name.to_owned()));
        }
        groups.remove(name);
        Ok(())
    }

    /// The names of all groups, in order.
    pub fn names(&self) -> Vec<String> {
        self.groups().keys().cloned().collect()
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Group>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::throttle::Throttle;

    #[test]
    fn a_group_is_found_by_name_and_stays_while_it_has_members() {
        let groups = ThrottleGroups::default();
        drop(groups.add("g", Limits::default()).expect("added"));
        assert_eq!(
            groups.add("g", Limits::default()).err(),
            Some(GroupError::Exists)
        );
        let member = Throttle::new(groups.get("g").expect("there"));
        let in_use = groups.remove("g").expect_err("in use").to_string();
        assert_eq!(in_use, "object 'g' is in use, can not be deleted");
        drop(member);
        groups.remove("g").expect("removed");
        let gone = groups.get("g").expect_err("gone").to_string();
        assert_eq!(gone, "Throttle group 'g' does not exist");
        assert!(groups.names().is_empty());
    }
}
