//! Tests of unpacking layers, most of them with hostile archives.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn put(mut self, kind: tar::EntryType, name: &str, link: &str, bytes: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o4755);
        header.set_uid(33);
        header.set_gid(34);
        header.set_mtime(1_000);
        // The name is written directly, because the library refuses the illegal names of these tests.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, bytes).expect("in memory");
        self
    }

    fn file(self, name: &str) -> Self {
        self.put(tar::EntryType::Regular, name, "", b"text")
    }

    /// Unpacks into a folder inside another one, in which no file may appear.
    fn unpack(self) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let outside = tempfile::tempdir().expect("a temporary folder");
        let dir = outside.path().join("layer");
        fs::create_dir(&dir).expect("in it");
        let mut blob = tempfile::tempfile().expect("a temporary file");
        blob.write_all(&self.0.into_inner().expect("in memory")).expect("written");
        blob.rewind().expect("a file");
        let result = unpack(blob, &dir, Whiteouts::Overlay);
        assert_eq!(fs::read_dir(outside.path()).expect("there").count(), 1, "nothing leads out of the layer");
        (outside, result)
    }
}

#[test]
fn files_links_owners_modes_and_times_are_as_the_tar_says() {
    let tar = Tar::new()
        .put(tar::EntryType::Directory, "bin/", "", b"")
        .file("bin/tool")
        .put(tar::EntryType::Link, "bin/hard", "bin/tool", b"")
        .put(tar::EntryType::Symlink, "bin/soft", "/bin/tool", b"");
    let (outside, result) = tar.unpack();
    result.expect("a good layer");
    let about = |name: &str| fs::symlink_metadata(outside.path().join("layer").join(name)).expect(name);
    let tool = about("bin/tool");
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777, tool.mtime()), (33, 34, 0o4755, 1_000));
    assert_eq!(about("bin/hard").ino(), tool.ino());
    assert!(about("bin/soft").is_symlink());
    assert_eq!(about("bin").mtime(), 1_000, "a folder's time, also after files were put into it");
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    let (outside, result) = Tar::new().file("a/.wh.gone").file("b/.wh..wh..opq").file("b/new").unpack();
    result.expect("a good layer");
    let layer = outside.path().join("layer");
    let gone = fs::symlink_metadata(layer.join("a/gone")).expect("a mark");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = xattr::get(layer.join("b"), "trusted.overlay.opaque").expect("readable");
    assert_eq!(opaque.as_deref(), Some(b"y".as_slice()));
}

#[test]
fn what_leads_out_is_refused_or_stays_inside() {
    // The whiteout names the parent folder.
    assert!(Tar::new().file(".wh...").unpack().1.is_err());
    assert!(Tar::new().file("a/.wh...").unpack().1.is_err());
    for (name, why) in [("../x", "leads out"), ("a/../../x", "leads out"), ("/x", "absolute")] {
        let (_outside, result) = Tar::new().file(name).unpack();
        let error = result.expect_err(name).to_string();
        assert!(error.contains(why), "{error}");
    }
    // A link that the layer itself created is resolved inside the layer.
    let (outside, result) = Tar::new().put(tar::EntryType::Symlink, "out", "/..", b"").file("out/x").unpack();
    result.expect("legal, and inside");
    assert!(outside.path().join("layer/x").exists());
    let (_outside, result) = Tar::new().put(tar::EntryType::Link, "passwd", "../../etc/passwd", b"").unpack();
    assert!(result.is_err(), "a hard link out of the layer");
    let (_outside, result) = Tar::new().put(tar::EntryType::Block, "disk", "", b"").unpack();
    assert!(result.expect_err("a device").to_string().contains("is a device"));
}

#[test]
fn a_bomb_is_stopped_and_a_cut_tar_refused() {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..4].copy_from_slice(b"bomb");
    header.set_size(10 << 30);
    header.set_cksum();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut blob = tempfile::tempfile().expect("a temporary file");
    blob.write_all(header.as_bytes()).expect("written");
    blob.rewind().expect("a file");
    let error = unpack(blob, dir.path(), Whiteouts::Overlay).expect_err("10 GiB from half a KiB");
    assert!(matches!(error, UnpackError::Bomb(_)), "{error}");
}

#[test]
fn a_record_that_is_read_into_memory_is_bounded() {
    // The long name has 2 MiB, which the tar library alone reads into memory as a whole.
    let name = vec![b'x'; 2 << 20];
    let (_outside, result) = Tar::new().put(tar::EntryType::GNULongName, "././@LongLink", "", &name).file("a").unpack();
    let error = result.expect_err("too long").to_string();
    assert!(error.contains("are the most"), "{error}");
    let short = [vec![b'y'; 200], vec![0]].concat();
    let (outside, result) = Tar::new().put(tar::EntryType::GNULongName, "././@LongLink", "", &short).file("a").unpack();
    result.expect("a long name that is not too long");
    assert!(outside.path().join("layer").join("y".repeat(200)).exists());
}
