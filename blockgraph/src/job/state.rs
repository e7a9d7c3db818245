//! The states of a job and what may be asked of it in each, as QEMU's job API defines them (qapi/job.json, `JobStatus`, `JobVerb`).

use std::fmt;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobState {
    /// Not born yet.
    Undefined,
    /// There, and not begun.
    Created,
    /// At work.
    Running,
    /// At rest, because somebody said so.
    Paused,
    /// It could be completed now, and goes on meanwhile.
    Ready,
    /// The same, at rest.
    Standby,
    /// Done itself, and waiting for others of its transaction.
    Waiting,
    /// All that is left is its last step.
    Pending,
    /// It failed or was cancelled, and undoes what it did.
    Aborting,
    /// Over; its result is kept until it is dismissed.
    Concluded,
    /// Gone.
    Null,
}

/// What can be asked of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobVerb {
    /// End without result.
    Cancel,
    /// Rest.
    Pause,
    /// Go on.
    Resume,
    /// Copy so many bytes a second at most.
    SetSpeed,
    /// Do the last step of a job that is ready.
    Complete,
    /// Do the last step of a job that is pending.
    Finalize,
    /// Be forgotten.
    Dismiss,
    /// Work in another way from now on.
    Change,
}

use JobState::{
    Aborting, Concluded, Created, Null, Paused, Pending, Ready, Running, Standby, Undefined,
    Waiting,
};

/// What may follow what.
const FOLLOWS: &[(JobState, &[JobState])] = &[
    (Undefined, &[Created]),
    (Created, &[Running, Aborting, Null]),
    (Running, &[Paused, Ready, Waiting, Aborting]),
    (Paused, &[Running]),
    (Ready, &[Standby, Waiting, Aborting]),
    (Standby, &[Ready]),
    (Waiting, &[Pending, Aborting]),
    (Pending, &[Aborting, Concluded]),
    (Aborting, &[Aborting, Concluded]),
    (Concluded, &[Null]),
    (Null, &[]),
];

/// When a verb may be used on a job that works or rests.
const ALIVE: &[JobState] = &[Created, Running, Paused, Ready, Standby];

impl JobState {
    /// Every state.
    pub const ALL: [JobState; 11] = [
        Undefined, Created, Running, Paused, Ready, Standby, Waiting, Pending, Aborting, Concluded,
        Null,
    ];

    /// Its name for clients.
    pub fn name(self) -> &'static str {
        match self {
            Undefined => "undefined",
            Created => "created",
            Running => "running",
            Paused => "paused",
            Ready => "ready",
            Standby => "standby",
            Waiting => "waiting",
            Pending => "pending",
            Aborting => "aborting",
            Concluded => "concluded",
            Null => "null",
        }
    }

    /// May that one follow?
    pub fn may_become(self, next: JobState) -> bool {
        FOLLOWS
            .iter()
            .any(|(from, to)| *from == self && to.contains(&next))
    }

    /// May that be asked now?
    pub fn takes(self, verb: JobVerb) -> bool {
        verb.states().contains(&self)
    }
}

impl JobVerb {
    /// Every verb.
    pub const ALL: [JobVerb; 8] = [
        JobVerb::Cancel,
        JobVerb::Pause,
        JobVerb::Resume,
        JobVerb::SetSpeed,
        JobVerb::Complete,
        JobVerb::Finalize,
        JobVerb::Dismiss,
        JobVerb::Change,
    ];

    /// Its name for clients.
    pub fn name(self) -> &'static str {
        match self {
            JobVerb::Cancel => "cancel",
            JobVerb::Pause => "pause",
            JobVerb::Resume => "resume",
            JobVerb::SetSpeed => "set-speed",
            JobVerb::Complete => "complete",
            JobVerb::Finalize => "finalize",
            JobVerb::Dismiss => "dismiss",
            JobVerb::Change => "change",
        }
    }

    fn states(self) -> &'static [JobState] {
        match self {
            JobVerb::Cancel => &[Created, Running, Paused, Ready, Standby, Waiting, Pending],
            JobVerb::Pause | JobVerb::Resume | JobVerb::SetSpeed | JobVerb::Change => ALIVE,
            // At rest it takes note, and completes when it goes on.
            JobVerb::Complete => &[Ready, Standby],
            JobVerb::Finalize => &[Pending],
            JobVerb::Dismiss => &[Concluded],
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<T: Copy>(all: &[T], is: impl Fn(T) -> bool) -> String {
        let marks = all.iter().map(|one| if is(*one) { 'x' } else { '.' });
        marks.collect()
    }

    #[test]
    fn the_tables_are_these() {
        let follows: Vec<String> = JobState::ALL
            .iter()
            .map(|from| {
                let marks = line(&JobState::ALL, |to| from.may_become(to));
                format!("{marks} {from}")
            })
            .collect();
        assert_eq!(
            follows,
            [
                ".x......... undefined",
                "..x.....x.x created",
                "...xx.x.x.. running",
                "..x........ paused",
                ".....xx.x.. ready",
                "....x...... standby",
                ".......xx.. waiting",
                "........xx. pending",
                "........xx. aborting",
                "..........x concluded",
                "........... null",
            ]
        );
        let verbs: Vec<String> = JobVerb::ALL
            .iter()
            .map(|verb| {
                let marks = line(&JobState::ALL, |state| state.takes(*verb));
                format!("{marks} {}", verb.name())
            })
            .collect();
        assert_eq!(
            verbs,
            [
                ".xxxxxxx... cancel",
                ".xxxxx..... pause",
                ".xxxxx..... resume",
                ".xxxxx..... set-speed",
                "....xx..... complete",
                ".......x... finalize",
                ".........x. dismiss",
                ".xxxxx..... change",
            ]
        );
    }

    #[test]
    fn every_job_can_come_to_its_end() {
        for state in JobState::ALL {
            let mut reached = vec![state];
            let mut at = 0;
            while at < reached.len() {
                let from = reached[at];
                let new = JobState::ALL.into_iter().filter(|to| from.may_become(*to));
                let new: Vec<JobState> = new.filter(|to| !reached.contains(to)).collect();
                reached.extend(new);
                at += 1;
            }
            assert!(reached.contains(&Null), "{state}");
        }
    }
}
