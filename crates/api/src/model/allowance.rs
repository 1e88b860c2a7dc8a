//! What a node's owner allows to tasks. The scheduler asks it where a task may go; the worker asks it again, because
//! it takes nobody's word for that.

use serde::Serialize;

use super::service::ServiceSpec;
use crate::{capability, naming};

/// Beyond Docker's default capabilities; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Allowance {
    /// Tasks may be privileged: with all devices and capabilities.
    pub privileged: bool,
    /// Paths that specs may map; one that ends in `*` stands for all that begin so.
    pub devices: Vec<String>,
    /// Capabilities that specs may add; `ALL` stands for every one.
    pub capabilities: Vec<String>,
}

/// What a spec asks for and a node does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Everything.
    #[error("this node allows no privileged tasks")]
    Privileged,
    /// This capability.
    #[error("this node does not allow the capability {0}")]
    Capability(String),
    /// The device at this path.
    #[error("this node does not allow the device {0}")]
    Device(String),
}

impl Allowance {
    /// Whether specs may map the device at `path`.
    pub fn has_device(&self, path: &str) -> bool {
        let covers = |allowed: &String| match allowed.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning),
            None => path == allowed,
        };
        // `/dev/snd/../mem` begins as `/dev/snd*` does.
        naming::check_path(path).is_ok() && self.devices.iter().any(covers)
    }

    /// Whether tasks may have this capability.
    pub fn has_capability(&self, name: &str) -> bool {
        let listed = |it: &String| it == name || it == capability::ALL;
        capability::DEFAULT.contains(&name) || self.capabilities.iter().any(listed)
    }

    /// The first thing that a task of `spec` may not have here.
    pub fn refusal(&self, spec: &ServiceSpec) -> Option<Refusal> {
        if spec.privileged {
            return (!self.privileged).then_some(Refusal::Privileged);
        }
        // The scheduler asks this of each node for each task, and hardly any spec adds something.
        if !spec.cap_add.is_empty() {
            let mut capabilities = capability::effective(&spec.cap_add, &spec.cap_drop).into_iter();
            if let Some(name) = capabilities.find(|name| !self.has_capability(name)) {
                return Some(Refusal::Capability(name.to_owned()));
            }
        }
        let device = spec.devices.iter().find(|device| !self.has_device(&device.source));
        device.map(|device| Refusal::Device(device.source.clone()))
    }

    /// Judges an owner's words.
    ///
    /// # Errors
    /// Says which entry can't be meant, and why.
    pub fn check(&self) -> Result<(), String> {
        for path in &self.devices {
            let beginning = path.strip_suffix('*').unwrap_or(path);
            let whole = if beginning.ends_with('/') { format!("{beginning}x") } else { beginning.to_owned() };
            if naming::check_path(&whole).is_err() || beginning.contains('*') {
                let shown = path.escape_default();
                return Err(format!(
                    "devices: `{shown}` is neither an absolute path nor the beginning of one and a `*`"
                ));
            }
        }
        let unknown = self.capabilities.iter().find(|name| !capability::is_known(name));
        unknown.map_or(Ok(()), |name| Err(format!("capabilities: `{}` is no capability", name.escape_default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|it| (*it).to_owned()).collect()
    }

    fn spec(add: &[&str], devices: &[&str]) -> ServiceSpec {
        let devices = devices.iter().map(|it| it.parse().expect(it)).collect();
        ServiceSpec { cap_add: list(add), devices, ..ServiceSpec::default() }
    }

    #[test]
    fn a_node_refuses_all_that_it_does_not_allow() {
        let nothing = Allowance::default();
        let some = Allowance {
            devices: list(&["/dev/fuse", "/dev/snd/*", "/dev/ttyUSB*"]),
            capabilities: list(&["NET_ADMIN"]),
            privileged: false,
        };
        let all = Allowance { privileged: true, capabilities: list(&["ALL"]), devices: list(&["/dev/*"]) };
        let refuses = |allowance: &Allowance, add: &[&str], devices: &[&str]| {
            allowance.refusal(&spec(add, devices)).map(|it| it.to_string()).unwrap_or_default()
        };
        for (allowance, add, devices, expected) in [
            (&nothing, &[][..], &[][..], ""),
            (&nothing, &["CHOWN"], &[], ""),
            (&nothing, &["NET_ADMIN"], &[], "this node does not allow the capability NET_ADMIN"),
            (&nothing, &[], &["/dev/fuse"], "this node does not allow the device /dev/fuse"),
            (&some, &["NET_ADMIN"], &["/dev/fuse", "/dev/snd/seq", "/dev/ttyUSB10"], ""),
            (&some, &["ALL"], &[], "this node does not allow the capability AUDIT_CONTROL"),
            (&some, &[], &["/dev/fuse2"], "this node does not allow the device /dev/fuse2"),
            (&some, &[], &["/dev/snd"], "this node does not allow the device /dev/snd"),
            (&all, &["ALL"], &["/dev/mem"], ""),
        ] {
            assert_eq!(refuses(allowance, add, devices), expected, "{add:?} {devices:?}");
        }
        assert!(!some.has_device("/dev/snd/../mem"));
        let mut privileged = spec(&["SYS_ADMIN"], &["/dev/mem"]);
        privileged.privileged = true;
        assert_eq!(some.refusal(&privileged), Some(Refusal::Privileged));
        assert_eq!(Allowance { privileged: true, ..nothing.clone() }.refusal(&privileged), None, "it has them all");
        // What is dropped again need not be allowed.
        let dropped = ServiceSpec { cap_drop: list(&["CHOWN"]), ..spec(&[], &[]) };
        assert_eq!(nothing.refusal(&dropped), None);
    }

    #[test]
    fn an_owners_words_are_judged() {
        let devices = |path: &str| Allowance { devices: list(&[path]), ..Allowance::default() }.check();
        for good in ["/dev/fuse", "/dev/snd/*", "/dev/tty*", "/*"] {
            assert_eq!(devices(good), Ok(()), "{good}");
        }
        for bad in ["", "*", "dev/fuse", "/dev/*/x", "/dev/../x", "/dev/tty**"] {
            assert!(devices(bad).is_err(), "{bad}");
        }
        assert!(Allowance { capabilities: list(&["net_admin"]), ..Allowance::default() }.check().is_err());
    }
}
