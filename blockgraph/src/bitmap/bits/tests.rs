use super::*;
use proptest::prelude::*;

fn bits(len: u64) -> Bits {
    Bits::new(len, &Arc::default()).expect("memory")
}

fn set_bits(bits: &Bits) -> Vec<u64> {
    let next = |from: u64| bits.next_set(from);
    std::iter::successors(next(0), |at| next(at + 1)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u64),
    Clear,
    ClearFrom(u64),
    Grow(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u64..30_000, 0_u64..9000).prop_map(|(from, len)| Step::Set(from, len)),
        1 => Just(Step::Clear),
        1 => (0_u64..30_000).prop_map(Step::ClearFrom),
        1 => (0_u64..40_000).prop_map(Step::Grow),
    ]
}

proptest! {
    #[test]
    fn bits_answer_as_a_list_of_booleans_does(first in 0_u64..9000, steps in prop::collection::vec(step(), 1..30)) {
        let bits = bits(first);
        let mut model = vec![false; first as usize];
        for step in steps {
            match step {
                Step::Set(from, len) => {
                    let end = (from + len).min(model.len() as u64);
                    bits.set(from..end);
                    model.iter_mut().enumerate().for_each(|(at, bit)| *bit |= (from..end).contains(&(at as u64)));
                }
                Step::Clear => {
                    bits.clear();
                    model.fill(false);
                }
                Step::ClearFrom(from) => {
                    bits.clear_from(from);
                    model.iter_mut().skip(from as usize).for_each(|bit| *bit = false);
                }
                Step::Grow(len) => {
                    bits.grow(len).expect("memory");
                    model.resize(model.len().max(len as usize), false);
                }
            }
            let expected: Vec<u64> = (0..model.len() as u64).filter(|at| model[*at as usize]).collect();
            prop_assert_eq!(bits.count(), expected.len() as u64);
            prop_assert_eq!(set_bits(&bits), expected);
            let end = model.len() as u64;
            for from in [0, end / 3, end / 2, end] {
                let clear = (from..end).find(|at| !model[*at as usize]);
                prop_assert_eq!(bits.next_clear(from, end), clear.unwrap_or(end));
            }
        }
    }
}

#[test]
fn bits_beyond_the_bound_are_refused_and_nothing_stays_reserved() {
    let memory = Arc::<BitmapMemory>::default();
    assert!(Bits::new(u64::MAX, &memory).is_err());
    assert!(Bits::new(super::super::memory::MEMORY_BYTES_MAX * 8, &memory).is_err());
    assert_eq!(memory.used_bytes(), 0);
    let bits = Bits::new(1, &memory).expect("memory");
    assert!(bits.grow(u64::MAX).is_err());
    drop(bits);
    assert_eq!(memory.used_bytes(), 0);
}
