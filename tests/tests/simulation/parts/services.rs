//! What the checker knows of services.

use flota_tests::sim::linearizability::{Operation, check};
use flota_tests::sim::services::{Answer, Op, Services, read};

fn done(called: u64, op: Op, answer: Answer) -> Operation<Services> {
    Operation { key: "web".into(), client: 0, op, answer: Some(answer), called, returned: called + 1 }
}

#[test]
fn a_stale_read_is_held_against_its_stated_age() {
    let history = |age| {
        vec![
            done(0, Op::Create { tag: 1 }, Answer::Done),
            done(10, Op::Update { from: Some(1), tag: 2 }, Answer::Done),
            read(1, "web", (20, 21), Op::Read { age, manager: Some(0) }, Some(1)),
        ]
    };
    assert_eq!(check(&history(10)), Ok(()));
    assert!(check(&history(8)).is_err());
    assert!(check(&history(0)).is_err());
}

#[test]
fn each_refusal_needs_its_reason() {
    let create = || done(0, Op::Create { tag: 1 }, Answer::Done);
    let changed = |from| done(4, Op::Update { from: Some(from), tag: 3 }, Answer::Changed);
    assert!(check(&[create(), changed(1)]).is_err(), "it was not changed");
    assert_eq!(check(&[create(), changed(9)]), Ok(()));
    assert!(check(&[create(), done(4, Op::Remove, Answer::Missing)]).is_err(), "it was there");
    assert!(check(&[done(0, Op::Create { tag: 1 }, Answer::Exists)]).is_err(), "it was not there");
    assert!(check(&[create(), done(4, Op::Create { tag: 2 }, Answer::Done)]).is_err(), "done twice");
}
