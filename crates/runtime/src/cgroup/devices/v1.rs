//! The list of a v1 devices group: computes the wanted list and the fewest writes that lead to it from the current
//! one.
//!
//! The list has the order of the rules, because the kernel shows the order of the writes and callers compare it with the
//! configuration.
//!
//! A list consists of "all" or "none" and exceptions. An exception is identified by kind, major and minor. The kernel
//! only removes access from an exception that is named exactly and ignores other removals (security/device_cgroup.c,
//! dev_exception_rm).

use std::fs::OpenOptions;
use std::io::Write;

use super::{ALL, CheckedRule, Kind, MAKE, READ, WRITE, refuse};
use crate::cgroup::Folder;
use crate::error::{Act, StepError};

/// Kind, major and minor of an exception.
type Key = (Kind, Option<u32>, Option<u32>);

/// The exceptions: what is allowed or, if all is allowed by default, what is denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DeviceList {
    allow_all: bool,
    exceptions: Exceptions,
}

/// Access by key, in the order of the rules. There are few, so a list suffices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Exceptions(Vec<(Key, u8)>);

impl Exceptions {
    fn add(&mut self, key: Key, access: u8) {
        match self.0.iter_mut().find(|it| it.0 == key) {
            Some((_, has)) => *has |= access,
            None => self.0.push((key, access)),
        }
    }

    /// Returns the exceptions with the access that `other` lacks.
    fn beyond<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (Key, u8)> + 'a {
        let lacks = |key: Key| !other.0.iter().find(|it| it.0 == key).map_or(0, |it| it.1);
        self.0.iter().map(move |(key, access)| (*key, access & lacks(*key))).filter(|(_, access)| *access != 0)
    }
}

/// A write to devices.allow (true) or devices.deny (false).
type Change = (bool, String);

impl DeviceList {
    /// Folds rules in their order into a list.
    pub(super) fn of(rules: &[CheckedRule]) -> Result<Self, StepError> {
        let mut list = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            if rule.is_reset() {
                list = Self { allow_all: rule.allow, exceptions: Exceptions::default() };
                continue;
            }
            let kinds = rule.kind.map_or(vec![Kind::Block, Kind::Char], |kind| vec![kind]);
            for kind in kinds {
                let key = (kind, rule.major, rule.minor);
                if rule.allow == list.allow_all {
                    list.except_no_more(index, key, rule.access)?;
                } else {
                    list.exceptions.add(key, rule.access);
                }
            }
        }
        Ok(list)
    }

    fn except_no_more(&mut self, index: usize, key: Key, access: u8) -> Result<(), StepError> {
        for (other, has) in &mut self.exceptions.0 {
            if covers(key, *other) {
                *has &= !access;
            } else if covers_in_part(key, *other) && *has & access != 0 {
                let why = format!("cgroup v1 can't except a part of `{}`", line(*other, *has));
                return Err(refuse(&format!("[{index}]"), why));
            }
        }
        self.exceptions.0.retain(|(_, has)| *has != 0);
        Ok(())
    }

    /// Parses devices.list. A list that allows all does not show what it denies.
    fn parse(text: &str) -> Self {
        let mut list = Self::default();
        for line in text.lines() {
            match parse_line(line) {
                Some((key, access)) => list.exceptions.add(key, access),
                None => list.allow_all = true,
            }
        }
        list
    }

    /// Returns the writes that lead from `current` to this list. Access that both lists allow stays allowed in
    /// between, if possible.
    fn changes_from(&self, current: &Self) -> Vec<Change> {
        let none = Exceptions::default();
        let mut changes = Vec::new();
        let mut old = &current.exceptions;
        if current.allow_all || self.allow_all {
            changes.push((self.allow_all, "a".to_owned()));
            old = &none;
        }
        let dropped = old.beyond(&self.exceptions).map(|it| (self.allow_all, it));
        let gained = self.exceptions.beyond(old).map(|it| (!self.allow_all, it));
        changes.extend(dropped.chain(gained).map(|(allow, (key, access))| (allow, line(key, access))));
        changes
    }

    /// Sets the list of a group.
    pub(super) fn set(&self, folder: &Folder) -> Result<(), StepError> {
        let path = |file: &str| folder.path.join(file);
        let current = folder.read("devices.list").act(|| format!("read {}", path("devices.list").display()))?;
        let mut files = [None, None];
        for (allow, value) in self.changes_from(&Self::parse(&current)) {
            let name = if allow { "devices.allow" } else { "devices.deny" };
            let act = || format!("set linux.resources.devices (`{value}` to {})", path(name).display());
            let slot = &mut files[usize::from(allow)];
            let file = match slot {
                Some(file) => file,
                None => slot.insert(OpenOptions::new().write(true).open(path(name)).act(act)?),
            };
            // The kernel accepts one rule per write.
            file.write_all(value.as_bytes()).act(act)?;
        }
        Ok(())
    }
}

fn covers(wide: Key, narrow: Key) -> bool {
    wide.0 == narrow.0 && (wide.1.is_none() || wide.1 == narrow.1) && (wide.2.is_none() || wide.2 == narrow.2)
}

fn covers_in_part(one: Key, other: Key) -> bool {
    let meet = |one: Option<u32>, other: Option<u32>| one.is_none() || other.is_none() || one == other;
    one.0 == other.0 && meet(one.1, other.1) && meet(one.2, other.2)
}

/// Formats an exception as the kernel does: `c 1:3 rwm`.
fn line((kind, major, minor): Key, access: u8) -> String {
    let kind = if kind == Kind::Char { 'c' } else { 'b' };
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |it| it.to_string());
    let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')].into_iter().filter(|(bit, _)| access & bit != 0);
    let letters: String = letters.map(|(_, letter)| letter).collect();
    format!("{kind} {}:{} {letters}", number(major), number(minor))
}

/// Parses an exception; `None` for "all".
fn parse_line(line: &str) -> Option<(Key, u8)> {
    let mut fields = line.split([' ', ':']);
    let kind = match fields.next()? {
        "b" => Kind::Block,
        "c" => Kind::Char,
        _ => return None,
    };
    let major = fields.next()?.parse().ok();
    let minor = fields.next()?.parse().ok();
    let bit = |letter| [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')].iter().find(|it| it.1 == letter).map_or(0, |it| it.0);
    Some(((kind, major, minor), fields.next()?.chars().map(bit).fold(0, |all, bit| all | bit) & ALL))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses test rules: `+c 1:3 rwm` allows, and `-a` denies all.
    fn rules(text: &str) -> Vec<CheckedRule> {
        let rule = |text: &str| {
            let (allow, line) = (text.starts_with('+'), &text[1..]);
            match parse_line(line) {
                Some(((kind, major, minor), access)) => CheckedRule { allow, kind: Some(kind), major, minor, access },
                None => CheckedRule { allow, kind: None, major: None, minor: None, access: ALL },
            }
        };
        text.split(", ").map(rule).collect()
    }

    fn changes(from: &str, to: &str) -> String {
        let list = DeviceList::of(&rules(to)).expect("rules that v1 can have");
        let changes = list.changes_from(&DeviceList::parse(from));
        let changes = changes.into_iter().map(|(allow, line)| format!("{}{line}", if allow { '+' } else { '-' }));
        changes.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_list_changes_by_the_fewest_writes() {
        for (from, to, expected) in [
            ("a *:* rwm", "-a, +c 10:229 rwm, +b 8:20 rw, +c 1:3 rwm", "-a, +c 10:229 rwm, +b 8:20 rw, +c 1:3 rwm"),
            // Without a first rule for all devices, everything else is denied.
            ("a *:* rwm", "+c 1:3 rw", "-a, +c 1:3 rw"),
            ("a *:* rwm", "-a, +a, -b 8:0 w", "+a, -b 8:0 w"),
            // The parent allows the same, so there is no write.
            ("c 1:3 rwm\nc *:* m", "-a, +c 1:3 rwm, +c *:* m", ""),
            ("c 1:3 rwm\nc 1:5 r", "-a, +c 1:3 r, +c 1:7 rwm", "-c 1:3 wm, -c 1:5 r, +c 1:7 rwm"),
            ("c 1:3 r", "+a", "+a"),
            // The last rule wins, including a wide one after narrow ones and one for a part of the access.
            ("", "+c 1:3 rwm, +c 1:5 rwm, -c 1:* rwm", ""),
            ("", "+c 1:3 rw, +c 1:3 m, -c 1:3 w", "+c 1:3 rm"),
        ] {
            assert_eq!(changes(from, to), expected, "{from:?} → {to}");
        }
    }

    #[test]
    fn a_hole_in_an_exception_is_refused_on_v1() {
        let error = DeviceList::of(&rules("-a, +c 1:* rwm, -c 1:3 w")).expect_err("the kernel would ignore it");
        let expected = "failed to set linux.resources.devices[2]: cgroup v1 can't except a part of `c 1:* rwm`";
        assert_eq!(error.to_string(), expected);
        // Exceptions for other access, kinds and numbers do not conflict.
        DeviceList::of(&rules("-a, +c *:* m, -c 1:3 rw, -b 1:3 m, +c 2:* r, -c 1:3 r")).expect("no holes");
    }

    #[test]
    fn rules_of_all_kinds_become_one_of_each() {
        let rule = CheckedRule { allow: true, kind: None, major: Some(7), minor: None, access: READ };
        let list = DeviceList::of(&[rule]).expect("two exceptions");
        assert_eq!(list.changes_from(&DeviceList::default()).len(), 2);
    }
}
