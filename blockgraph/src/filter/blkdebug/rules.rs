//! Which errors are to be made, and when: QEMU's model of rules, events and a state.
//!
//! The rule: an event looks at all rules of its own that fit the state; if any of them injects, they and no others are
//! active from then on. A request fails by the first active rule that meets it.

use super::event::BlkdebugEvent;
use crate::units::Span;
use ring::Errno;

/// A kind of request that rules tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoType {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A write of zeroes.
    WriteZeroes,
    /// A discard.
    Discard,
    /// A flush.
    Flush,
    /// A question about block status.
    BlockStatus,
}

/// `inject-error`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InjectError {
    /// From when on.
    pub event: BlkdebugEvent,
    /// Only in this state; 0: in any.
    pub state: i64,
    /// Only such requests; `None`: all but questions.
    pub io_type: Option<IoType>,
    /// How they end; 0: well.
    pub errno: i32,
    /// Only requests that touch this sector of 512 bytes.
    pub sector: Option<u64>,
    /// Only the first.
    pub once: bool,
    /// At once, and not after the thread has done something else.
    pub immediately: bool,
}

/// `set-state`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetState {
    /// When.
    pub event: BlkdebugEvent,
    /// Only in this state; 0: in any.
    pub state: i64,
    /// The state from then on.
    pub new_state: i64,
}

/// What becomes of a request that a rule meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    pub errno: Errno,
    pub immediately: bool,
}

/// All rules of a node, and its state.
#[derive(Debug)]
pub(super) struct Rules {
    state: i64,
    injections: Vec<Option<InjectError>>,
    states: Vec<SetState>,
    /// Of the injections, the last activated first.
    active: Vec<usize>,
}

impl Rules {
    pub(super) fn new(injections: Vec<InjectError>, states: Vec<SetState>) -> Rules {
        let mut rules = Rules {
            state: 1,
            injections: injections.into_iter().map(Some).collect(),
            states,
            active: Vec::new(),
        };
        rules.fire(BlkdebugEvent::None);
        rules
    }

    pub(super) fn fire(&mut self, event: BlkdebugEvent) {
        let now = self.state;
        let fits = |rule_event: BlkdebugEvent, state: i64| {
            rule_event == event && (state == 0 || state == now)
        };
        let injections = self.injections.iter().enumerate();
        let fired: Vec<usize> = injections
            .filter(|(_, rule)| rule.is_some_and(|rule| fits(rule.event, rule.state)))
            .map(|(at, _)| at)
            .collect();
        if !fired.is_empty() {
            self.active = fired.into_iter().rev().collect();
        }
        if let Some(last) = self
            .states
            .iter()
            .rfind(|rule| fits(rule.event, rule.state))
        {
            self.state = last.new_state;
        }
    }

    pub(super) fn check(&mut self, io_type: IoType, span: Span) -> Option<Hit> {
        let injections = &self.injections;
        let met = self.active.iter().position(|&at| {
            let rule = injections.get(at).copied().flatten();
            rule.is_some_and(|rule| meets(&rule, io_type, span))
        })?;
        let at = self.active[met];
        let rule = self.injections.get(at).copied().flatten()?;
        if rule.errno <= 0 {
            return None;
        }
        if rule.once {
            self.active.remove(met);
            self.injections[at] = None;
        }
        Some(Hit {
            errno: Errno(rule.errno),
            immediately: rule.immediately,
        })
    }
}

fn meets(rule: &InjectError, io_type: IoType, span: Span) -> bool {
    let kind = match rule.io_type {
        Some(only) => only == io_type,
        None => io_type != IoType::BlockStatus,
    };
    let place = rule.sector.is_none_or(|sector| {
        let at = sector.saturating_mul(512);
        (span.at..span.end()).contains(&at)
    });
    kind && place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inject(event: BlkdebugEvent, errno: i32) -> InjectError {
        InjectError {
            event,
            state: 0,
            io_type: None,
            errno,
            sector: None,
            once: false,
            immediately: false,
        }
    }

    fn errno(rules: &mut Rules, io_type: IoType, at: u64) -> Option<i32> {
        let span = Span { at, len: 1024 };
        rules.check(io_type, span).map(|hit| hit.errno.0)
    }

    #[test]
    fn a_rule_for_no_event_is_active_from_the_beginning() {
        let rules = vec![inject(BlkdebugEvent::None, 5)];
        let mut rules = Rules::new(rules, Vec::new());
        assert_eq!(errno(&mut rules, IoType::Read, 0), Some(5));
        assert_eq!(errno(&mut rules, IoType::Flush, 0), Some(5));
        assert_eq!(errno(&mut rules, IoType::BlockStatus, 0), None);
    }

    #[test]
    fn an_event_activates_its_rules_and_no_others_any_more() {
        let (read, write) = (BlkdebugEvent::ReadAio, BlkdebugEvent::WriteAio);
        let rules = vec![inject(read, 5), inject(write, 28), inject(write, 12)];
        let mut rules = Rules::new(rules, Vec::new());
        assert_eq!(errno(&mut rules, IoType::Read, 0), None);
        rules.fire(read);
        assert_eq!(errno(&mut rules, IoType::Write, 0), Some(5));
        rules.fire(write);
        assert_eq!(
            errno(&mut rules, IoType::Read, 0),
            Some(12),
            "the last first"
        );
        rules.fire(BlkdebugEvent::L2Load);
        assert_eq!(errno(&mut rules, IoType::Read, 0), Some(12));
    }

    #[test]
    fn once_sector_type_and_state_narrow_a_rule() {
        let event = BlkdebugEvent::None;
        let once = InjectError {
            once: true,
            sector: Some(3),
            io_type: Some(IoType::Write),
            ..inject(event, 28)
        };
        let mut rules = Rules::new(vec![once], Vec::new());
        assert_eq!(errno(&mut rules, IoType::Write, 0), None, "sectors 0 and 1");
        assert_eq!(
            errno(&mut rules, IoType::Write, 2048),
            None,
            "sectors 4 and 5"
        );
        assert_eq!(errno(&mut rules, IoType::Read, 1024), None);
        assert_eq!(errno(&mut rules, IoType::Write, 1024), Some(28));
        assert_eq!(errno(&mut rules, IoType::Write, 1024), None);
        let later = InjectError {
            state: 2,
            ..inject(BlkdebugEvent::ReadAio, 5)
        };
        let change = SetState {
            event: BlkdebugEvent::ReadAio,
            state: 1,
            new_state: 2,
        };
        let mut rules = Rules::new(vec![later], vec![change]);
        rules.fire(BlkdebugEvent::ReadAio);
        assert_eq!(
            errno(&mut rules, IoType::Read, 0),
            None,
            "state 1 until now"
        );
        rules.fire(BlkdebugEvent::ReadAio);
        assert_eq!(errno(&mut rules, IoType::Read, 0), Some(5));
    }

    #[test]
    fn every_event_is_known_by_its_name() {
        for (event, name) in BlkdebugEvent::EACH {
            assert_eq!(BlkdebugEvent::parse(name), Some(*event));
        }
        assert_eq!(BlkdebugEvent::parse("bogus"), None);
        assert_eq!(BlkdebugEvent::EACH.len(), 48);
    }
}
