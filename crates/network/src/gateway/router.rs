//! The kernel parameters that make a host forward packets. A file keeps what they were before, so that a host which is a
//! gateway no more gets them back. It is in memory, because a boot resets the parameters.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{NetworkError, io};
use crate::namespace::set_here;

const PARAMETERS: &str = "/proc/sys";

/// Lets the namespace of this thread forward packets, and adds to the file `former` what its parameters were before.
/// Returns those that had another value, as phrases.
pub(super) fn become_router(former: &Path) -> Result<Vec<String>, NetworkError> {
    let wanted = wanted();
    let mut known = read(former)?;
    let before = known.len();
    for (name, value) in &wanted {
        if let Some(found) = parameter(name).filter(|found| found != value) {
            known.entry(name.clone()).or_insert(found);
        }
    }
    if known.len() > before {
        // Before they change, so that a crash in between loses nothing.
        let lines: String = known.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        let temporary = former.with_extension("new");
        let written = std::fs::write(&temporary, lines).and_then(|()| std::fs::rename(&temporary, former));
        written.map_err(io(format!("write {}", former.display())))?;
    }
    set_here(&wanted.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>())
}

/// Gives the parameters of this thread's namespace their former values, unless someone else has changed them meanwhile.
pub(super) fn restore(former: &Path) -> Result<(), NetworkError> {
    let known = read(former)?;
    let ours = |name: &str| if name.ends_with("accept_ra") { "2" } else { "1" };
    let unchanged = known.iter().filter(|(name, _)| parameter(name).is_some_and(|found| found == ours(name)));
    // Forwarding comes first, because switching it resets others.
    let (forwarding, others): (Vec<_>, Vec<_>) = unchanged
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .partition(|(name, _)| !name.ends_with("accept_ra"));
    set_here(&[forwarding, others].concat())?;
    match std::fs::remove_file(former) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(format!("remove {}", former.display()))(error)),
        _ => Ok(()),
    }
}

/// Returns the kernel parameters that a router needs.
fn wanted() -> Vec<(String, &'static str)> {
    let interfaces = std::fs::read_dir(Path::new(PARAMETERS).join("net/ipv6/conf")).into_iter().flatten().flatten();
    // With `accept_ra` = 1, an interface ignores router advertisements once forwarding is on, and the host loses the routes
    // that it has from them. With 2 it accepts them nevertheless.
    let obeying = interfaces.map(|entry| format!("net/ipv6/conf/{}/accept_ra", entry.file_name().to_string_lossy()));
    let obeying = obeying.filter(|name| parameter(name).is_some_and(|value| value == "1"));
    let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].map(|name| (name.to_owned(), "1"));
    obeying.map(|name| (name, "2")).chain(forwarding).collect()
}

fn parameter(name: &str) -> Option<String> {
    Some(std::fs::read_to_string(Path::new(PARAMETERS).join(name)).ok()?.trim().to_owned())
}

fn read(former: &Path) -> Result<BTreeMap<String, String>, NetworkError> {
    let text = match std::fs::read_to_string(former) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.map_err(io(format!("read {}", former.display())))?,
    };
    Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(name, value)| (name.into(), value.into())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Namespace;

    #[test]
    fn a_host_that_was_no_router_before_is_none_afterwards() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, former) = (folder.path().join("host"), folder.path().join("former"));
        let host = Namespace::make(&path).expect("tests run as root");
        let read = |name: &str| host.enter(|| Ok(parameter(name))).expect("it can be entered").expect("it is there");
        let [forwarding, advertisements] = ["net/ipv6/conf/all/forwarding", "net/ipv6/conf/lo/accept_ra"];
        host.set(&[("net/ipv4/ip_forward", "0"), (forwarding, "0"), (advertisements, "1")]).expect("they are there");
        for _ in 0..2 {
            // The second time, as a process does that was restarted.
            host.enter(|| become_router(&former)).expect("the kernel can do it");
            assert_eq!([read("net/ipv4/ip_forward"), read(forwarding), read(advertisements)], ["1", "1", "2"]);
        }
        host.enter(|| restore(&former)).expect("the kernel can do it");
        assert_eq!([read("net/ipv4/ip_forward"), read(forwarding), read(advertisements)], ["0", "0", "1"]);
        host.set(&[("net/ipv4/ip_forward", "1")]).expect("it is there");
        host.enter(|| become_router(&former).and_then(|_| restore(&former))).expect("the kernel can do it");
        assert_eq!(read("net/ipv4/ip_forward"), "1", "it was a router before");
        assert!(!former.exists());
        Namespace::remove(&path).expect("it is removed");
    }
}
