//! The profile of AppArmor that tasks of this node run with. The kernel has to have loaded it; apparmor_parser(8) does that,
//! usually at boot.

/// The profile in deploy/apparmor.
const OWN: &str = "flota-default";
/// The name with which a node's owner says that tasks run without a profile.
const NONE: &str = "unconfined";
/// The names of the loaded profiles, each with its mode: `name (enforce)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Returns the profile for tasks; `wanted` is what the node's owner has set.
pub(crate) fn profile(wanted: Option<&str>) -> Option<String> {
    choose(wanted, &std::fs::read_to_string(LOADED).unwrap_or_default())
}

/// Returns the profile that the owner wants, whether it is loaded or not: a task must not start without it. Without such a wish
/// it is that of Flota, if the kernel has it.
fn choose(wanted: Option<&str>, loaded: &str) -> Option<String> {
    match wanted {
        Some(NONE) => None,
        Some(name) => Some(name.to_owned()),
        None => {
            let is_loaded = loaded.lines().any(|line| line.split(" (").next() == Some(OWN));
            is_loaded.then(|| OWN.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_the_profile_that_is_wanted_or_that_of_flota_where_it_is_loaded() {
        let loaded = "docker-default (enforce)\nflota-default (enforce)\n/usr/bin/man (enforce)\n";
        for (wanted, loaded, expected) in [
            (None, loaded, Some(OWN)),
            (None, "flota-default-2 (enforce)\n", None),
            (None, "", None),
            (Some("unconfined"), loaded, None),
            (Some("mine"), "", Some("mine")),
        ] {
            assert_eq!(choose(wanted, loaded).as_deref(), expected, "{wanted:?} {loaded}");
        }
    }
}
