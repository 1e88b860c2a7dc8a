//! Copies the folder that an image has at a path, as a container would see it, to the disk: the first content of a
//! volume.
//!
//! Paths are looked up in the stack of unpacked layers (`unpack/stack.rs`) and not in a mount. Symbolic links on the way to
//! the folder are resolved within the image; those in it are copied as they are and never followed. The walk has a list and
//! no recursion, because a layer decides how deep its folders are.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::copy::{attributes, copy_file};
use crate::unpack::{Stack, Whiteouts};

/// Largest number of links on the way to the folder, the same as the kernel's (path_resolution(7)).
const LINKS: usize = 40;

/// Why a folder of an image can't be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The image has something else there.
    #[error("the image has no folder at `{path}`, but a file", path = .0.display())]
    NotFolder(PathBuf),
    /// The path leads in a circle.
    #[error("the image's path `{path}` has too many links", path = .0.display())]
    Links(PathBuf),
    /// An I/O error.
    #[error("failed to copy what the image has at `{path}`", path = path.display())]
    Io {
        /// The path in the image.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Copies the content of the folder at `path`, and its attributes, to the empty folder `to`. `layers` are the folders of the
/// image's unpacked layers, the topmost first. Copies nothing if the image has nothing there.
pub(crate) fn copy_folder(layers: &[PathBuf], whiteouts: Whiteouts, path: &Path, to: &Path) -> Result<(), CopyError> {
    let stack = Stack { layers: layers.to_vec(), whiteouts };
    let Some(folders) = find(&stack, path)? else { return Ok(()) };
    let mut copy = FolderCopy { stack, links: HashMap::new(), left: vec![(folders, to.to_owned())] };
    let failed = |source| CopyError::Io { path: path.to_owned(), source };
    let mut copied = Vec::new();
    while let Some((folders, to)) = copy.left.pop() {
        copy.content(&folders, &to).map_err(failed)?;
        copied.extend(folders.into_iter().next().map(|from| (from, to)));
    }
    // Copying into a folder changes its time.
    for (from, to) in copied.iter().rev() {
        fs_err::symlink_metadata(from).and_then(|about| attributes(from, to, &about)).map_err(failed)?;
    }
    Ok(())
}

/// Returns the folders of layers that are merged at the path, the topmost first; `None` if nothing is there.
fn find(stack: &Stack, path: &Path) -> Result<Option<Vec<PathBuf>>, CopyError> {
    let failed = |source| CopyError::Io { path: path.to_owned(), source };
    let mut parts: VecDeque<OsString> = names(path).collect();
    // Each folder on the way, from the root on.
    let mut way = vec![stack.layers.clone()];
    let mut links = 0;
    while let Some(part) = parts.pop_front() {
        if part == ".." {
            // The parent of the root is the root.
            way.truncate(way.len().saturating_sub(1).max(1));
            continue;
        }
        let here = way.last().expect("the root stays");
        let entries = stack.entries(here, &part).map_err(failed)?;
        let Some((at, about)) = entries.first() else { return Ok(None) };
        if about.is_symlink() {
            links += 1;
            if links > LINKS {
                return Err(CopyError::Links(path.to_owned()));
            }
            let target = fs_err::read_link(at).map_err(failed)?;
            if target.is_absolute() {
                way.truncate(1);
            }
            names(&target).collect::<Vec<_>>().into_iter().rev().for_each(|name| parts.push_front(name));
        } else if about.is_dir() {
            way.push(entries.into_iter().map(|(at, _)| at).collect());
        } else {
            return Err(CopyError::NotFolder(path.to_owned()));
        }
    }
    Ok(way.pop())
}

/// Returns the named parts of a path.
fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

struct FolderCopy {
    stack: Stack,
    /// Where the files with more than one name were copied to, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Folders that exist in the target and whose content is still to be copied.
    left: Vec<(Vec<PathBuf>, PathBuf)>,
}

impl FolderCopy {
    fn content(&mut self, folders: &[PathBuf], to: &Path) -> io::Result<()> {
        let mut names = BTreeSet::new();
        for folder in folders {
            for entry in fs_err::read_dir(folder)? {
                names.insert(entry?.file_name());
            }
        }
        names.retain(|name| !self.stack.is_whiteout(name));
        for name in names {
            let entries = self.stack.entries(folders, &name)?;
            let to = to.join(&name);
            match entries.first() {
                None => {}
                Some((_, about)) if about.is_dir() => {
                    fs_err::create_dir(&to)?;
                    self.left.push((entries.into_iter().map(|(at, _)| at).collect(), to));
                }
                Some((at, about)) => self.file(at, &to, about)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path, about: &Metadata) -> io::Result<()> {
        if about.nlink() > 1 {
            let first = self.links.entry((about.dev(), about.ino())).or_insert_with(|| to.to_owned());
            if first != to {
                return fs_err::hard_link(first, to);
            }
        }
        copy_file(from, to, about)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    use super::*;

    /// Two layers, of which the upper one hides, replaces and adds files of the lower one's folder `/srv/data`.
    fn layers(dir: &Path) -> Vec<PathBuf> {
        let [lower, upper] = ["lower", "upper"].map(|name| dir.join(name));
        fs::create_dir_all(lower.join("srv/data/sub/opaque")).expect("it is new");
        fs::create_dir_all(upper.join("srv/data/sub/opaque")).expect("it is new");
        for (file, text) in [("kept", "1"), ("hidden", "2"), ("changed", "3"), ("sub/a", "4"), ("sub/opaque/old", "5")]
        {
            fs::write(lower.join("srv/data").join(file), text).expect("a new file");
        }
        fs::hard_link(lower.join("srv/data/kept"), lower.join("srv/data/sub/same")).expect("a link");
        fs::write(upper.join("srv/data/changed"), "new").expect("a new file");
        fs::write(upper.join("srv/data/sub/opaque/new"), "6").expect("a new file");
        mknod(&upper.join("srv/data/hidden"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))
            .expect("root makes devices");
        xattr::set(upper.join("srv/data/sub/opaque"), "trusted.overlay.opaque", b"y").expect("root sets attributes");
        // A file outside of the image, and a link inside that leads to it.
        fs::write(dir.join("secret"), "secret").expect("a new file");
        symlink("../../../secret", upper.join("srv/data/out")).expect("a link");
        symlink("/srv", upper.join("alias")).expect("a link");
        symlink("/circle", upper.join("circle")).expect("a link");
        fs::write(upper.join("file"), "").expect("a new file");
        fs::set_permissions(upper.join("srv/data"), fs::Permissions::from_mode(0o2750)).expect("it is ours");
        lchown(upper.join("srv/data"), Some(7), Some(8)).expect("root changes owners");
        fs::set_permissions(lower.join("srv/data/kept"), fs::Permissions::from_mode(0o4711)).expect("it is ours");
        xattr::set(lower.join("srv/data/kept"), "user.colour", b"red").expect("the disk has attributes");
        vec![upper, lower]
    }

    fn copied(path: &str) -> (tempfile::TempDir, Result<PathBuf, CopyError>) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let layers = layers(dir.path());
        let to = dir.path().join("to");
        fs::create_dir(&to).expect("it is new");
        let result = copy_folder(&layers, Whiteouts::Overlay, Path::new(path), &to).map(|()| to);
        (dir, result)
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut found: Vec<String> = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_folder_is_copied_as_a_container_would_see_it() {
        let (_dir, to) = copied("/srv/data");
        let to = to.expect("it is a folder");
        assert_eq!(files(&to), ["changed", "kept", "out", "sub"]);
        assert_eq!(files(&to.join("sub")), ["a", "opaque", "same"]);
        assert_eq!(files(&to.join("sub/opaque")), ["new"]);
        assert_eq!(fs::read_to_string(to.join("changed")).expect("a file"), "new");
        let about = fs::metadata(&to).expect("it is there");
        assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (7, 8, 0o2750));
        let kept = fs::metadata(to.join("kept")).expect("it is there");
        assert_eq!((kept.mode() & 0o7777, kept.nlink()), (0o4711, 2));
        assert_eq!(kept.ino(), fs::metadata(to.join("sub/same")).expect("it is there").ino());
        assert_eq!(xattr::get(to.join("kept"), "user.colour").expect("it is there").as_deref(), Some(&b"red"[..]));
        let opaque = xattr::get(to.join("sub/opaque"), "trusted.overlay.opaque").expect("it is there");
        assert_eq!(opaque, None, "marks of layers are none of the content");
        assert_eq!(fs::read_link(to.join("out")).expect("a link"), Path::new("../../../secret"));
    }

    #[test]
    fn links_on_the_way_are_resolved_within_the_image() {
        for path in ["/alias/data", "/alias/../srv/data", "/srv/data/sub/..", "/../../srv/data"] {
            let (_dir, to) = copied(path);
            assert_eq!(files(&to.expect(path)), ["changed", "kept", "out", "sub"], "{path}");
        }
        for path in ["/nowhere", "/srv/data/hidden", "/srv/data/out/x"] {
            let (_dir, to) = copied(path);
            assert_eq!(files(&to.expect(path)), [] as [&str; 0], "{path}");
        }
        assert!(matches!(copied("/circle").1, Err(CopyError::Links(_))));
        for path in ["/file", "/file/x", "/srv/data/kept"] {
            assert!(matches!(copied(path).1, Err(CopyError::NotFolder(_))), "{path}");
        }
    }
}
