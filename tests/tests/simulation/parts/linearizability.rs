//! The checker of histories, with a register in the place of the cluster.

use std::time::{Duration, Instant};

use flota_tests::sim::linearizability::{Model, Operation, Violation, check};

/// A register with compare-and-set.
struct Register;

#[derive(Clone, Copy, Debug)]
enum Op {
    Read,
    Write(u64),
    Cas(u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Value(u64),
    Done,
    Refused,
}

impl Model for Register {
    type Key = u64;
    type State = u64;
    type Op = Op;
    type Answer = Answer;

    fn initial() -> u64 {
        0
    }

    fn step(state: &u64, op: &Op, answer: Option<&Answer>) -> Option<u64> {
        let (next, right) = match *op {
            Op::Read => (*state, Answer::Value(*state)),
            Op::Write(value) => (value, Answer::Done),
            Op::Cas(from, to) if *state == from => (to, Answer::Done),
            Op::Cas(..) => (*state, Answer::Refused),
        };
        answer.is_none_or(|answer| *answer == right).then_some(next)
    }

    fn leaves_state(answer: &Answer) -> bool {
        !matches!(answer, Answer::Done)
    }
}

fn op(called: u64, returned: u64, op: Op, answer: Answer) -> Operation<Register> {
    Operation { key: 0, client: 0, op, answer: Some(answer), called, returned }
}

fn unknown(called: u64, op: Op) -> Operation<Register> {
    Operation { key: 0, client: 0, op, answer: None, called, returned: 0 }
}

use Answer::{Done, Refused, Value};
use Op::{Cas, Read, Write};

#[test]
fn one_after_the_other_is_linearizable() {
    let history = [op(0, 1, Write(1), Done), op(2, 3, Read, Value(1)), op(4, 5, Cas(1, 2), Done)];
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn a_stale_read_is_found_and_named() {
    let history = [op(0, 1, Write(1), Done), op(2, 3, Write(2), Done), op(4, 5, Read, Value(1))];
    let Err(Violation::Impossible { stuck, .. }) = check(&history) else { panic!("it was taken") };
    assert!(stuck.contains("Read -> Value(1)"), "{stuck}");
}

#[test]
fn a_read_beside_a_write_may_see_both_values() {
    for value in [0, 1] {
        assert_eq!(check(&[op(0, 10, Write(1), Done), op(5, 6, Read, Value(value))]), Ok(()));
    }
}

#[test]
fn two_reads_beside_a_write_never_go_back() {
    let history = [op(0, 10, Write(1), Done), op(1, 2, Read, Value(1)), op(3, 4, Read, Value(0))];
    assert!(check(&history).is_err());
}

#[test]
fn two_sets_from_the_same_value_never_both_succeed() {
    assert!(check(&[op(0, 9, Cas(0, 1), Done), op(0, 9, Cas(0, 2), Done)]).is_err());
    assert_eq!(check(&[op(0, 9, Cas(0, 1), Done), op(0, 9, Cas(0, 2), Refused)]), Ok(()));
}

#[test]
fn a_write_of_unknown_outcome_may_have_happened_early_late_or_never() {
    for read in [vec![], vec![op(2, 3, Read, Value(0))], vec![op(2, 3, Read, Value(1))]] {
        let history: Vec<_> = [unknown(0, Write(1))].into_iter().chain(read).collect();
        assert_eq!(check(&history), Ok(()));
    }
    let late = [unknown(0, Write(1)), op(2, 3, Write(2), Done), op(4, 5, Read, Value(2)), op(6, 7, Read, Value(1))];
    assert_eq!(check(&late), Ok(()));
}

#[test]
fn a_write_of_unknown_outcome_happens_once_and_not_before_its_call() {
    let twice = [unknown(0, Write(1)), op(1, 2, Read, Value(1)), op(3, 4, Write(2), Done), op(5, 6, Read, Value(1))];
    assert!(check(&twice).is_err());
    assert!(check(&[op(0, 1, Read, Value(1)), unknown(2, Write(1))]).is_err());
}

#[test]
fn keys_are_independent() {
    let mut history = vec![op(0, 1, Write(1), Done), op(2, 3, Read, Value(0))];
    history[1].key = 1;
    assert_eq!(check(&history), Ok(()));
}

/// Returns histories of a correct register: eight clients; each operation takes effect in the middle of its time.
fn real(keys: u64, operations: u64) -> Vec<Operation<Register>> {
    let mut state = vec![0; usize::try_from(keys).unwrap()];
    let mut seed = 7_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let one = |number| {
        let key = next(keys);
        let value = &mut state[usize::try_from(key).unwrap()];
        let it = match next(4) {
            0 => Write(next(5)),
            1 => Cas(next(5), next(5)),
            _ => Read,
        };
        let middle = 100 + number * 10;
        let answer = match it {
            Read => Value(*value),
            Write(_) => Done,
            Cas(from, _) => {
                if from == *value {
                    Done
                } else {
                    Refused
                }
            }
        };
        *value = Register::step(value, &it, None).unwrap();
        let mut made = op(middle - next(80), middle + next(80), it, answer);
        made.key = key;
        if next(100) == 0 {
            made.answer = None;
        }
        made
    };
    (0..operations).map(one).collect()
}

#[test]
fn ten_thousand_operations_on_fifty_keys_are_decided_at_once() {
    let mut history = real(50, 10_000);
    let begun = Instant::now();
    assert_eq!(check(&history), Ok(()));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // A value that was never written.
    let read = history.iter().rposition(|it| matches!(it.answer, Some(Value(_)))).unwrap();
    history[read].answer = Some(Value(9));
    assert!(check(&history).is_err());
}

#[test]
fn many_writes_of_unknown_outcome_do_not_make_a_history_undecidable() {
    let mut history: Vec<_> = (0..40).map(|number| unknown(number, Write(1_000 + number))).collect();
    // Each pair is possible only if no unknown write takes effect between the two.
    for number in 0..40 {
        let at = 100 + 10 * number;
        history.push(op(at, at + 3, Write(number), Done));
        history.push(op(at + 1, at + 5, Cas(number, 500 + number), Done));
        history.push(op(at + 6, at + 7, Read, Value(500 + number)));
    }
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn many_reads_with_wide_windows_do_not_make_a_history_undecidable() {
    // Each could be before or after each other; the last read is wrong in any order.
    let mut history: Vec<_> = (0..200).map(|_| op(0, 1_000, Read, Value(0))).collect();
    history.extend([op(10, 20, Write(1), Done), op(30, 40, Read, Value(7))]);
    assert!(matches!(check(&history), Err(Violation::Impossible { .. })));
}
