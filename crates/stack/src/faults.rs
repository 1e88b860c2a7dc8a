//! Finds all faults of a document, so that a user mends them together. A conversion ends at its first fault; what is at fault is
//! removed, and the rest is converted again.

use std::collections::BTreeSet;

use crate::tree::{Fault, Node};

/// Most faults that are found.
const BOUND: usize = 20;

/// Converts a document.
///
/// # Errors
/// The faults that do not follow from one another, in the order of their lines.
pub(crate) fn convert_all<T>(mut document: Node, convert: impl Fn(&Node) -> Result<T, Fault>) -> Result<T, Vec<Fault>> {
    let mut faults: Vec<Fault> = Vec::new();
    // The maps from which a value was removed: others of their values may be wrong only without it. An unknown key is wrong in
    // any case.
    let mut maps = BTreeSet::new();
    while faults.len() < BOUND {
        let fault = match convert(&document) {
            Ok(converted) if faults.is_empty() => return Ok(converted),
            Ok(_) => break,
            Err(fault) => fault,
        };
        // It lacks what has been removed.
        if faults.iter().any(|it| fault.contains(it)) {
            break;
        }
        // Others refer to a whole service, network, volume, secret or config, and would seem to be wrong without it.
        let is_last = fault.key.split('.').count() <= 2 && !fault.is_unknown_key || !document.remove(&fault);
        if fault.is_unknown_key || maps.insert(fault.map().to_owned()) {
            faults.push(fault);
        }
        if is_last {
            break;
        }
    }
    faults.sort_by_key(|fault| fault.line);
    Err(faults)
}

impl Fault {
    /// Whether the value at fault contains that of another fault.
    fn contains(&self, other: &Self) -> bool {
        let rest = other.key.strip_prefix(&self.key);
        rest.is_some_and(|rest| self.key.is_empty() || rest.starts_with(['.', '[']))
    }

    /// Returns the key of the map that has the value at fault. An item of a list stands alone.
    fn map(&self) -> &str {
        match self.key.rsplit_once('.') {
            Some((map, _)) if !self.key.ends_with(']') => map,
            _ => &self.key,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::convert::{self, Context};
    use crate::tree::parse;

    /// The line and key of each fault of a file.
    fn found(text: &str) -> Vec<String> {
        let context = Context { environment: &|_| None, folder: Path::new("/nowhere") };
        let converted =
            convert_all(parse(text).expect("good YAML"), |document| convert::stack("s", document, &context));
        let shown = |fault: &Fault| format!("{} {}", fault.line, fault.key);
        converted.map_or_else(|faults| faults.iter().map(shown).collect(), |_| Vec::new())
    }

    #[test]
    fn all_faults_that_stand_for_themselves_are_found_at_once() {
        let text = "
services:
  web:
    image: a
    user: [root]
    storage_opt: x
    colour: red
    ports: ['0:0', '80', 'x']
    deploy:
      mode: daemon
      replicas: -1
      resources: { limits: { cpus: many } }
  db:
    image: b
    init: maybe
networks:
  back: { driver_options: 1 }
colour: red
";
        let web = |rest: &str| rest.replace("web", "services.web");
        let expected = [
            "5 web.user",
            "6 web.storage_opt",
            "7 web.colour",
            "8 web.ports[0]",
            "8 web.ports[2]",
            "10 web.deploy.mode",
            "12 web.deploy.resources.limits.cpus",
            "15 services.db.init",
            "17 networks.back.driver_options",
            "18 colour",
        ];
        assert_eq!(found(text), expected.map(web));
    }

    #[test]
    fn what_only_follows_from_another_fault_is_not_one() {
        for (text, expected) in [
            // Without its schedule, the service can't have a time zone.
            (
                "services:\n  a:\n    image: x\n    deploy:\n      x-flota-schedule: never\n      x-flota-time-zone: UTC",
                vec!["5 services.a.deploy.x-flota-schedule"],
            ),
            // Without the service, nothing can depend on it.
            ("services:\n  a: { command: x }\n  b: { image: x, depends_on: [a], init: maybe }", vec!["2 services.a"]),
            // Without its file, the secret has no value.
            (
                "services: { a: { image: x, secrets: [key] } }\nsecrets:\n  key:\n    file: [x]",
                vec!["4 secrets.key.file"],
            ),
            ("services: 1", vec!["1 services"]),
            ("services: { a: { image: x } }", vec![]),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn a_value_that_many_places_share_is_at_fault_once_and_the_search_has_an_end() {
        let shared = "x-base: &base\n  image: x\n  user: [y]\nservices: { a: { <<: *base }, b: { <<: *base } }";
        assert_eq!(found(shared), ["3 x-base.user"]);
        let many: String = (0..100).map(|number| format!("  s{number}: {{ image: x, init: maybe }}\n")).collect();
        assert_eq!(found(&format!("services:\n{many}")).len(), BOUND);
    }
}
