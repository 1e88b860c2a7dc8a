//! Filters are run by a small interpreter; what it needs is here.

mod interpreter;
mod random;
mod reference;

use crate::oci::{Argument, SyscallRule};

fn rule(names: &[&str], action: &str) -> SyscallRule {
    let names = names.iter().map(|&it| it.to_owned()).collect();
    SyscallRule { names, action: action.to_owned(), ..SyscallRule::default() }
}

fn argument(index: u32, op: &str, value: u64, value_two: u64) -> Argument {
    Argument { index, value, value_two, op: op.to_owned() }
}
