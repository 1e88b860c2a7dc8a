//! `linux.resources.devices`: which devices a container may access, and how.
//!
//! Rules apply in their order, and an access that no rule matches is denied. On v1 the kernel keeps a list that can
//! only express exceptions from "all" or "none": the rules are first folded into such a list, and rules that can't be
//! are refused, because the kernel ignores them silently. On v2 a program ([`filter`]) is called for each access.

mod bpf;
mod filter;
mod v1;

#[cfg(test)]
pub(super) use bpf::count as programs;

use super::{Folder, Groups};
use crate::error::{Act, StepError};
use crate::oci::DeviceRule;

const READ: u8 = 1;
const WRITE: u8 = 2;
const MAKE: u8 = 4;
const ALL: u8 = READ | WRITE | MAKE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block,
    Char,
}

/// A validated rule. `None` matches any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

impl Rule {
    /// Returns whether the rule overrides all rules before it.
    fn is_reset(&self) -> bool {
        *self == Self { allow: self.allow, kind: None, major: None, minor: None, access: ALL }
    }
}

/// Returns the rules for the default devices in /dev (OCI config-linux.md, "Default Devices"), to be added after the
/// container's own rules. `c *:* m` and `b *:* m` allow it to create nodes that it can't open.
pub fn default_device_rules() -> Vec<DeviceRule> {
    let any = ["c", "b"].map(|kind| (kind, None, None, "m"));
    // These are null, zero, full, random, urandom, tty, console and ptmx, and all of devpts.
    let nodes = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    let nodes = nodes.map(|(major, minor)| ("c", Some(major), Some(minor), "rwm"));
    let terminals = ("c", Some(136), None, "rwm");
    let rule = |(kind, major, minor, access): (&str, Option<i64>, Option<i64>, &str)| DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    any.into_iter().chain(nodes).chain([terminals]).map(rule).collect()
}

/// The group that enforces the rules and what is written there.
pub(super) struct Plan<'a> {
    folder: &'a Folder,
    rules: Vec<Rule>,
    target: Option<v1::List>,
}

/// Returns the plan of these rules; `None` if there are no rules, in which case nothing is changed.
pub(super) fn plan<'a>(groups: &'a Groups, rules: &[DeviceRule]) -> Result<Option<Plan<'a>>, StepError> {
    if rules.is_empty() {
        return Ok(None);
    }
    let rules = rules.iter().enumerate().map(|(index, rule)| check(index, rule)).collect::<Result<Vec<_>, _>>()?;
    let Some(folder) = controlled(groups) else {
        return Err(refuse("", "this machine has no `devices` cgroup controller, and no cgroup v2"));
    };
    let target = if folder.v2 { None } else { Some(v1::List::of(&rules)?) };
    Ok(Some(Plan { folder, rules, target }))
}

/// Returns the group that enforces the rules: on v1 if it has the controller, else on v2.
pub(super) fn controlled(groups: &Groups) -> Option<&Folder> {
    let v1 = groups.folders.iter().find(|folder| folder.has_v1("devices"));
    v1.or_else(|| groups.folders.iter().find(|folder| folder.v2))
}

impl Plan<'_> {
    pub(super) fn run(&self, fresh: bool) -> Result<(), StepError> {
        match &self.target {
            Some(target) => target.set(self.folder),
            None => bpf::replace(&self.folder.path, &filter::program(&self.rules), fresh)
                .act(|| format!("set linux.resources.devices (a program for {})", self.folder.path.display())),
        }
    }
}

fn refuse(field: &str, why: impl Into<String>) -> StepError {
    StepError::refuse(format!("set linux.resources.devices{field}"), why)
}

fn check(index: usize, rule: &DeviceRule) -> Result<Rule, StepError> {
    let kind = match rule.kind.as_str() {
        "" | "a" => None,
        "b" => Some(Kind::Block),
        "c" | "u" => Some(Kind::Char),
        other => return Err(refuse(&format!("[{index}].type"), format!("`{other}` is neither a, b nor c"))),
    };
    let number = |field: &str, number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        // The kernel's device numbers have 12 and 20 bits; one bit of the program's constants is the sign.
        Some(number) => match u32::try_from(number) {
            Ok(number) if i32::try_from(number).is_ok() => Ok(Some(number)),
            _ => Err(refuse(&format!("[{index}].{field}"), format!("{number} is not a device number"))),
        },
    };
    let mut access = if rule.access.is_empty() { ALL } else { 0 };
    for letter in rule.access.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MAKE,
            // No specification defines this, but runc accepts it.
            'a' => ALL,
            _ => return Err(refuse(&format!("[{index}].access"), format!("`{letter}` is none of r, w and m"))),
        };
    }
    Ok(Rule {
        allow: rule.allow,
        kind,
        major: number("major", rule.major)?,
        minor: number("minor", rule.minor)?,
        access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        let rule = |kind: &str, major, access: &str| DeviceRule {
            kind: kind.into(),
            major: Some(major),
            access: access.into(),
            ..DeviceRule::default()
        };
        for (rule, expected) in [
            (rule("p", 1, "r"), "failed to set linux.resources.devices[3].type: `p` is neither a, b nor c"),
            (rule("c", -2, "r"), "failed to set linux.resources.devices[3].major: -2 is not a device number"),
            (
                rule("c", 1 << 31, "r"),
                "failed to set linux.resources.devices[3].major: 2147483648 is not a device number",
            ),
            (rule("c", 1, "rx"), "failed to set linux.resources.devices[3].access: `x` is none of r, w and m"),
        ] {
            assert_eq!(check(3, &rule).expect_err("refused").to_string(), expected);
        }
        let wide = check(0, &DeviceRule::default()).expect("a rule for all");
        assert!(wide.is_reset() && !wide.allow);
    }

    #[test]
    fn the_default_devices_are_those_of_the_specification() {
        let rules = default_device_rules();
        let checked: Vec<Rule> = rules.iter().map(|rule| check(0, rule).expect("our own")).collect();
        assert_eq!(rules.len(), 11);
        assert!(checked.iter().all(|rule| rule.allow && rule.access == if rule.major.is_none() { MAKE } else { ALL }));
    }
}
