//! Resolves `user[:group]` to ids by the container's own /etc/passwd and /etc/group. They are opened below its root,
//! so that no path can lead outside.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{Act, StepError};
use crate::rootfs::RootDir;

/// Largest user table in bytes.
const BOUND: u64 = 4 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContainerUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, including `gid`.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Returns the text of a table, which is empty if the image has none. A table that is there and can't be read is an error,
/// because a user would lack groups, or count as unknown.
fn table(root: &RootDir, path: &str) -> Result<String, StepError> {
    let act = || format!("read the image's {path}");
    // O_NONBLOCK prevents the open from waiting if the path is a pipe.
    let file = match root.find(Path::new(path), libc::O_RDONLY | libc::O_NONBLOCK) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(String::new()),
        found => File::from(found.act(act)?),
    };
    let metadata = file.metadata().act(act)?;
    if !metadata.is_file() {
        return Ok(String::new());
    }
    if metadata.len() > BOUND {
        return Err(StepError::refuse(act(), format!("it has more than {BOUND} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(BOUND).read_to_end(&mut bytes).act(act)?;
    // A line in another encoding does not hide the others.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds a user, who also gets the groups in `more`, by name or number.
pub(crate) fn find(root: &RootDir, text: &str, more: &[String]) -> Result<ContainerUser, StepError> {
    let group = table(root, "/etc/group")?;
    let mut user = parse(text, &table(root, "/etc/passwd")?, &group)?;
    add_groups(&mut user, more, &group)?;
    Ok(user)
}

fn add_groups(user: &mut ContainerUser, more: &[String], group: &str) -> Result<(), StepError> {
    for wanted in more {
        let gid = group_id(wanted, group)?;
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }
    Ok(())
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// Returns the number of a group, which needs an entry only if it is given by name.
fn group_id(wanted: &str, group: &str) -> Result<u32, StepError> {
    let id = |line: &str| line.strip_prefix(wanted)?.strip_prefix(':')?.split(':').nth(1)?.parse().ok();
    let found = group.lines().find_map(id).or_else(|| number(wanted));
    found.ok_or_else(|| StepError::refuse(format!("find the group `{wanted}`"), "the image's /etc/group has none"))
}

fn parse(text: &str, passwd: &str, group: &str) -> Result<ContainerUser, StepError> {
    let (user, wanted_group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 6 && (fields[0] == user || (user.parse::<u32>().is_ok() && fields[2] == user)));
    let uid = entry.as_ref().and_then(|fields| number(fields[2])).or_else(|| number(user));
    let uid =
        uid.ok_or_else(|| StepError::refuse(format!("find the user `{user}`"), "the image's /etc/passwd has none"))?;
    let own_group = entry.as_ref().and_then(|fields| number(fields[3])).unwrap_or(0);
    let gid = wanted_group.map_or(Ok(own_group), |wanted| group_id(wanted, group))?;
    let name = entry.as_ref().map_or(user, |fields| fields[0]);
    let member = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let listed = fields.get(3).is_some_and(|members| members.split(',').any(|it| it == name));
        if listed { fields.get(2).and_then(|it| number(it)) } else { None }
    };
    let mut groups: Vec<u32> =
        if wanted_group.is_none() { group.lines().filter_map(member).collect() } else { Vec::new() };
    groups.push(gid);
    groups.dedup();
    let home = entry.as_ref().map_or("/", |fields| fields[5]).to_owned();
    Ok(ContainerUser { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:4:web,other\n";

    #[test]
    fn line_of_another_encoding_hides_no_other_line() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("etc")).expect("a folder");
        let passwd = [b"m\xfcller:x:1:1:M\xfcller:/:/bin/sh\n".as_slice(), PASSWD.as_bytes()].concat();
        std::fs::write(dir.path().join("etc/passwd"), passwd).expect("a file");
        let root = RootDir::open(dir.path()).expect("it is there");
        assert_eq!(find(&root, "web", &[]).expect("known").uid, 33);
    }

    #[test]
    fn table_that_is_absent_is_empty_and_one_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = RootDir::open(dir.path()).expect("it is there");
        assert_eq!(find(&root, "33", &[]).expect("a number needs no table").uid, 33);
        std::fs::create_dir(dir.path().join("etc")).expect("a folder");
        std::os::unix::fs::symlink("passwd", dir.path().join("etc/passwd")).expect("a link");
        assert_eq!(find(&root, "33", &[]).expect("a link to nothing is as good as none").uid, 33);
        std::fs::File::create(dir.path().join("etc/group")).and_then(|it| it.set_len(BOUND + 1)).expect("a file");
        let error = find(&root, "33", &[]).expect_err("it is too large").to_string();
        assert_eq!(error, format!("failed to read the image's /etc/group: it has more than {BOUND} bytes"));
    }

    #[test]
    fn users_are_found_by_name_and_number_and_unknown_ones_refused() {
        let ids = |text: &str| parse(text, PASSWD, GROUP).map(|it| (it.uid, it.gid, it.groups.len(), it.home));
        assert_eq!(ids("").expect("root"), (0, 0, 1, "/root".into()));
        assert_eq!(ids("web").expect("known"), (33, 34, 2, "/srv".into()));
        assert_eq!(ids("33:log").expect("known"), (33, 4, 1, "/srv".into()));
        assert_eq!(ids("1000:1001").expect("numbers need no entry"), (1000, 1001, 1, "/".into()));
        let error = ids("nobody").expect_err("not in the table").to_string();
        assert_eq!(error, "failed to find the user `nobody`: the image's /etc/passwd has none");
        assert!(ids("web:nogroup").is_err());
    }

    #[test]
    fn further_groups_are_found_by_name_and_number_and_added_once() {
        let groups = |more: &[&str]| {
            let mut user = parse("web:web", PASSWD, GROUP)?;
            let more: Vec<String> = more.iter().map(|it| (*it).to_owned()).collect();
            add_groups(&mut user, &more, GROUP).map(|()| user.groups)
        };
        assert_eq!(groups(&[]).expect("none"), [34]);
        assert_eq!(groups(&["log", "4", "777", "web"]).expect("known"), [34, 4, 777]);
        let error = groups(&["log", "audio"]).expect_err("not in the table").to_string();
        assert_eq!(error, "failed to find the group `audio`: the image's /etc/group has none");
    }
}
