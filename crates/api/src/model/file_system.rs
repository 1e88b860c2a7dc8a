//! File systems that a volume shows instead of a folder of its node: what `type`, `device` and `o` are for Docker's driver
//! `local`. Each task mounts it by itself, on whatever node it runs.

use serde::Serialize;

use crate::naming;

/// The type that stands for a file or folder of the node.
pub(super) const BIND: &str = "bind";

/// The type that is memory. Every node allows it, as every service can mount memory anyway.
pub(super) const TMPFS: &str = "tmpfs";

/// The types whose device names a server, as `SERVER:/PATH`.
const NFS: [&str; 2] = ["nfs", "nfs4"];

/// The types whose device names a server, as `//SERVER/SHARE`.
const SMB: [&str; 2] = ["cifs", "smb3"];

/// Options that name a server, which the device does, too. Only one of them can be what a node allows.
const SERVER_OPTIONS: [&str; 5] = ["addr", "ip", "unc", "mountaddr", "mounthost"];

/// Options of mount(8) that change mounts instead of making one.
const OTHER_ACTS: [&str; 16] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "private",
    "rprivate",
    "unbindable",
    "runbindable",
    "idmap",
    "ridmap",
    "tmpcopyup",
    "source",
];

/// Options of a file system of type [`BIND`].
const BIND_OPTIONS: [&str; 3] = ["rbind", "ro", "rw"];

/// Most bytes of a type. Those that kernels have are far shorter.
const KIND_BOUND: usize = 64;

/// Largest number of options.
const OPTIONS_BOUND: usize = 100;

/// Most bytes of a device, and of the name and the value of an option: fsconfig(2) takes no longer ones. A path on the node has
/// the bound of paths.
const TEXT_BOUND: usize = 255;

/// Most bytes of type, device and options together: every task that uses the volume gets them with its assignment.
const SUM_BOUND: usize = 4096;

/// Types whose options name what is mounted. An owner who lists them with a device would not say what is allowed.
pub(super) const NAMED_BY_OPTIONS: [&str; 4] = ["overlay", "ceph", "9p", "fuse"];

/// A file system (mount(2)). Its form is normal: the server of a network file system is in its device alone, and a bind
/// mount has the type [`BIND`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileSystem {
    /// Its type, as `nfs`, `ext4` or `tmpfs`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is mounted: a device, a share of a server, or the path on the node of a bind mount.
    pub device: String,
    /// Options, as in fstab(5).
    pub options: Vec<String>,
}

impl FileSystem {
    /// Makes the file system that `type`, `device` and `o` of Docker's driver `local` stand for. Its rules are not checked.
    ///
    /// # Errors
    /// `addr` names another server than the device.
    pub fn of(kind: &str, device: &str, o: &str) -> Result<Self, String> {
        let mut options: Vec<String> = o.split(',').filter(|it| !it.is_empty()).map(str::to_owned).collect();
        let is_bind = |options: &[String]| options.iter().any(|it| it == "bind" || it == "rbind");
        if kind == "none" && is_bind(&options) || kind == BIND {
            options.retain(|it| it != "bind");
            return Ok(Self { kind: BIND.to_owned(), device: device.to_owned(), options });
        }
        let mut device = device.to_owned();
        if NFS.contains(&kind) || SMB.contains(&kind) {
            let is_address = |it: &String| it.starts_with("addr=");
            if let Some(index) = options.iter().position(is_address) {
                let address = options.remove(index)["addr=".len()..].to_owned();
                if device.starts_with(":/") {
                    device = if address.contains(':') { format!("[{address}]{device}") } else { address + &device };
                } else if server_of(kind, &device) != Some(address.as_str()) {
                    return Err(format!("o: addr={address} is not the server of the device `{device}`"));
                }
            }
        } else if kind == TMPFS && device.is_empty() {
            TMPFS.clone_into(&mut device);
        }
        Ok(Self { kind: kind.to_owned(), device, options })
    }

    /// Returns the path on the node, if it is a bind mount.
    pub fn bound_path(&self) -> Option<&str> {
        (self.kind == BIND).then_some(self.device.as_str())
    }

    /// Returns the name or address of its server, if it is known to have one.
    pub fn server(&self) -> Option<&str> {
        server_of(&self.kind, &self.device)
    }

    /// Returns whether mounting it reaches more than memory, so that the owner of a node has to allow it.
    pub fn needs_permission(&self) -> bool {
        self.kind != TMPFS
    }

    /// Returns whether an option names another file, as that of a journal.
    pub(super) fn has_path_option(&self) -> bool {
        self.server().is_none()
            && self.options.iter().any(|it| it.split_once('=').is_some_and(|(_, it)| it.contains('/')))
    }

    /// Returns whether it has this option.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.iter().any(|it| it == name)
    }

    /// Returns the texts, which count towards the size of a spec.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        [self.kind.as_str(), self.device.as_str()].into_iter().chain(self.options.iter().map(String::as_str))
    }

    /// Checks its rules.
    ///
    /// # Errors
    /// One is broken; the text names it.
    pub fn check(&self) -> Result<(), String> {
        check_kind(&self.kind).map_err(|why| format!("type: {why}"))?;
        let Self { kind, device, .. } = self;
        if device.is_empty() {
            return Err(format!("device: one is needed for the type {kind}"));
        }
        if kind == "none" {
            return Err("type: `none` goes with the option bind in `o`".into());
        }
        if kind == BIND {
            if device != "/" {
                naming::check_path(device).map_err(|error| format!("device: {error}"))?;
            }
        } else if !is_text(device) {
            return Err(format!("device: it has at most {TEXT_BOUND} bytes and no control characters"));
        }
        // What an owner allows is compared with this text. Servers of SMB take both as separators.
        if device.split(['/', '\\']).any(|part| part == "..") {
            return Err(format!("device: `{device}` has the part `..`"));
        }
        let form = match kind.as_str() {
            kind if NFS.contains(&kind) => Some("SERVER:/PATH, or :/PATH with the option addr=SERVER"),
            kind if SMB.contains(&kind) => Some("//SERVER/SHARE"),
            _ => None,
        };
        if let Some(form) = form.filter(|_| self.server().is_none()) {
            return Err(format!("device: `{device}` does not have the form {form}"));
        }
        if self.options.len() > OPTIONS_BOUND {
            return Err(format!("o: there are more than {OPTIONS_BOUND} options"));
        }
        if self.texts().map(str::len).sum::<usize>() > SUM_BOUND {
            return Err(format!("o: type, device and options have at most {SUM_BOUND} bytes together"));
        }
        self.options.iter().try_for_each(|option| self.check_option(option).map_err(|why| format!("o: {why}")))
    }

    fn check_option(&self, option: &str) -> Result<(), String> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if name.is_empty() || !is_text(name) || !is_text(value) {
            return Err(format!(
                "an option has a name, neither that nor its value has more than {TEXT_BOUND} bytes, and no control characters"
            ));
        }
        if self.kind == BIND {
            return match BIND_OPTIONS.contains(&option) {
                true => Ok(()),
                false => Err(format!("`{option}` is not an option of a bind mount; they are bind, rbind, ro and rw")),
            };
        }
        if OTHER_ACTS.contains(&name) {
            return Err(format!("`{option}` is not an option of a file system of type {}", self.kind));
        }
        if self.server().is_some() && SERVER_OPTIONS.contains(&name) {
            return Err(format!("`{option}`: the server is that of the device"));
        }
        Ok(())
    }
}

/// Checks the type of a file system.
///
/// # Errors
/// It can't be one.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let begins_well = kind.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match begins_well && kind.len() <= KIND_BOUND && kind.bytes().all(legal) {
        true => Ok(()),
        false => Err(format!("`{}` is not the type of a file system", kind.escape_debug())),
    }
}

fn is_text(text: &str) -> bool {
    text.len() <= TEXT_BOUND && !text.contains(char::is_control)
}

/// Returns the server that a device names.
fn server_of<'a>(kind: &str, device: &'a str) -> Option<&'a str> {
    let server = if NFS.contains(&kind) {
        match device.strip_prefix('[') {
            Some(rest) => rest.split_once("]:/")?.0,
            None => device.split_once(":/")?.0,
        }
    } else if SMB.contains(&kind) {
        device.strip_prefix("//")?.split_once('/')?.0
    } else {
        return None;
    };
    (!server.is_empty()).then_some(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(kind: &str, device: &str, o: &str) -> Result<String, String> {
        let it = FileSystem::of(kind, device, o)?;
        it.check()?;
        let server = it.server().map(|it| format!(" at {it}")).unwrap_or_default();
        Ok(format!("{} {} {}{server}", it.kind, it.device, it.options.join(",")))
    }

    #[test]
    fn what_docker_users_write_has_one_form() {
        for (kind, device, o, expected) in [
            ("nfs", ":/srv/a", "addr=198.18.0.1,rw,nfsvers=4", "nfs 198.18.0.1:/srv/a rw,nfsvers=4 at 198.18.0.1"),
            ("nfs", "198.18.0.1:/srv/a", "addr=198.18.0.1,ro", "nfs 198.18.0.1:/srv/a ro at 198.18.0.1"),
            ("nfs4", "nas.lan:/", "soft", "nfs4 nas.lan:/ soft at nas.lan"),
            ("nfs", ":/srv", "addr=fd00::1", "nfs [fd00::1]:/srv  at fd00::1"),
            ("cifs", "//nas/share/a", "addr=nas,username=u", "cifs //nas/share/a username=u at nas"),
            ("none", "/srv/a", "bind", "bind /srv/a "),
            ("none", "/", "rbind,ro", "bind / rbind,ro"),
            ("bind", "/srv/a", "", "bind /srv/a "),
            ("tmpfs", "", "size=64m,uid=7", "tmpfs tmpfs size=64m,uid=7"),
            ("tmpfs", "tmpfs", "", "tmpfs tmpfs "),
            (
                "ext4",
                "/dev/disk/by-label/data",
                "noatime,,data=journal",
                "ext4 /dev/disk/by-label/data noatime,data=journal",
            ),
        ] {
            assert_eq!(made(kind, device, o).as_deref(), Ok(expected), "{kind} {device} {o}");
        }
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        let long = "x".repeat(TEXT_BOUND + 1);
        let many = "a,".repeat(OPTIONS_BOUND + 1);
        for (kind, device, o, expected) in [
            ("", "/dev/a", "", "type: `` is not the type of a file system"),
            ("Ext4", "/dev/a", "", "type: `Ext4` is not the type"),
            ("none", "/srv", "", "type: `none` goes with the option bind"),
            ("ext4", "", "", "device: one is needed for the type ext4"),
            ("ext4", &long, "", "device: it has at most 255 bytes"),
            ("ext4", "/dev/a\n", "", "device: it has at most 255 bytes and no control characters"),
            ("ext4", "/dev/../etc", "", "device: `/dev/../etc` has the part `..`"),
            ("nfs", "nas:/srv/..", "", "device: `nas:/srv/..` has the part `..`"),
            ("nfs", ":/srv", "", "device: `:/srv` does not have the form SERVER:/PATH"),
            ("nfs", "/srv", "addr=nas", "o: addr=nas is not the server of the device `/srv`"),
            ("nfs", "a:/srv", "addr=b", "o: addr=b is not the server of the device `a:/srv`"),
            ("nfs", "a:/srv", "mountaddr=b", "o: `mountaddr=b`: the server is that of the device"),
            ("cifs", "//nas/share/pub/..\\priv", "", "device: `//nas/share/pub/..\\priv` has the part `..`"),
            ("cifs", "nas/share", "", "device: `nas/share` does not have the form //SERVER/SHARE"),
            ("cifs", "//nas/share", "ip=198.18.0.1", "o: `ip=198.18.0.1`: the server is that of the device"),
            ("none", "srv", "bind", "device: `srv` is not an absolute path"),
            ("none", "/srv", "bind,size=1", "o: `size=1` is not an option of a bind mount"),
            ("ext4", "/dev/a", "remount", "o: `remount` is not an option of a file system of type ext4"),
            ("ext4", "/dev/a", "source=/dev/b", "o: `source=/dev/b` is not an option of a file system"),
            ("ext4", "/dev/a", "=b", "o: an option has a name"),
            ("ext4", "/dev/a", &many, "o: there are more than 100 options"),
            ("ext4", "/dev/a", &format!("a={long}"), "o: an option has a name, neither that nor its value"),
            (
                "ext4",
                "/dev/a",
                &format!("{}b", format!("a={},", "x".repeat(250)).repeat(17)),
                "o: type, device and options",
            ),
        ] {
            let result = made(kind, device, o);
            let is_named = result.as_ref().is_err_and(|why| why.starts_with(expected));
            assert!(is_named, "{kind} {device} {o}: {result:?}");
        }
    }
}
