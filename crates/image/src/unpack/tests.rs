//! Tests of unpacking layers, many of them with hostile archives.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use tar_core::builder::EntryBuilder;
use tar_core::{HEADER_SIZE, SparseEntry};

use super::*;
use std::io::{Seek, Write};

/// An archive that is being built.
struct Tar(Vec<u8>);

impl Tar {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn put(mut self, kind: EntryType, name: &str, link: &str, bytes: &[u8]) -> Self {
        let mut entry = EntryBuilder::new_gnu();
        entry.path(name).link_name(link).entry_type(kind);
        self.append(entry, bytes);
        self
    }

    fn append(&mut self, mut entry: EntryBuilder, bytes: &[u8]) {
        entry.size(bytes.len() as u64).expect("small").mode(0o4755).expect("small").mtime(1_000).expect("small");
        entry.uid(33).expect("small").gid(34).expect("small");
        self.0.extend(entry.finish_bytes());
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(HEADER_SIZE), 0);
    }

    fn with(mut self, change: impl FnOnce(&mut EntryBuilder), bytes: &[u8]) -> Self {
        let mut entry = EntryBuilder::new_ustar();
        change(&mut entry);
        self.append(entry, bytes);
        self
    }

    fn file(self, name: &str) -> Self {
        self.put(EntryType::Regular, name, "", b"text")
    }

    fn folder(self, name: &str) -> Self {
        self.put(EntryType::Directory, name, "", b"")
    }

    /// Unpacks into a folder inside another one, in which no file may appear.
    fn unpack(&self) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let outside = tempfile::tempdir().expect("a temporary folder");
        let result = self.unpack_onto(&outside, "layer", &[]);
        assert_eq!(fs::read_dir(outside.path()).expect("there").count(), 1, "nothing leads out of the layer");
        (outside, result)
    }

    fn unpack_onto(&self, outside: &tempfile::TempDir, name: &str, lower: &[PathBuf]) -> Result<(), UnpackError> {
        let dir = outside.path().join(name);
        fs::create_dir(&dir).expect("in it");
        let mut blob = tempfile::tempfile().expect("a temporary file");
        blob.write_all(&self.0).expect("written");
        blob.rewind().expect("a file");
        unpack(blob, &dir, lower, Whiteouts::Overlay)
    }
}

/// Unpacks two layers; returns the folder that holds them as `lower` and `layer`.
fn stacked(lower: &Tar, layer: &Tar) -> tempfile::TempDir {
    let outside = tempfile::tempdir().expect("a temporary folder");
    lower.unpack_onto(&outside, "lower", &[]).expect("a good layer");
    layer.unpack_onto(&outside, "layer", &[outside.path().join("lower")]).expect("a good layer");
    outside
}

fn about(outside: &tempfile::TempDir, name: &str) -> fs::Metadata {
    fs::symlink_metadata(outside.path().join("layer").join(name)).expect(name)
}

fn is_whiteout(outside: &tempfile::TempDir, name: &str) -> bool {
    let about = fs::symlink_metadata(outside.path().join("layer").join(name));
    about.is_ok_and(|it| it.file_type().is_char_device() && it.rdev() == 0)
}

fn hides_lower(outside: &tempfile::TempDir, name: &str) -> bool {
    is_opaque(&outside.path().join("layer").join(name)).expect("readable")
}

#[test]
fn files_links_owners_modes_and_times_are_as_the_tar_says() {
    let tar = Tar::new().folder("bin/").file("bin/tool").put(EntryType::Link, "bin/hard", "bin/tool", b"").put(
        EntryType::Symlink,
        "bin/soft",
        "/bin/tool",
        b"",
    );
    let (outside, result) = tar.unpack();
    result.expect("a good layer");
    let tool = about(&outside, "bin/tool");
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777, tool.mtime()), (33, 34, 0o4755, 1_000));
    assert_eq!(about(&outside, "bin/hard").ino(), tool.ino());
    assert!(about(&outside, "bin/soft").is_symlink());
    assert_eq!(about(&outside, "bin").mtime(), 1_000, "a folder's time, also after files were put into it");
}

#[test]
fn last_entry_of_a_folder_says_when_it_was_changed() {
    let at = |seconds: &'static [u8]| {
        move |it: &mut EntryBuilder| {
            it.path("bin/").entry_type(EntryType::Directory).add_pax("mtime", seconds);
        }
    };
    let (outside, result) = Tar::new().with(at(b"5"), b"").with(at(b"7"), b"").unpack();
    result.expect("a good layer");
    assert_eq!(about(&outside, "bin").mtime(), 7);
}

#[test]
fn large_file_of_zeros_is_no_bomb() {
    let mut zeros = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut header = EntryBuilder::new_gnu();
    let size = 300 << 20;
    header.path("zeros").size(size).expect("it fits");
    zeros.write_all(&header.finish_bytes()).expect("memory");
    let zero = vec![0; 1 << 20];
    (0..300).for_each(|_| zeros.write_all(&zero).expect("memory"));
    zeros.write_all(&[0; 1024]).expect("memory");
    let (outside, result) = Tar(zeros.finish().expect("memory")).unpack();
    result.expect("it is legal");
    assert_eq!(about(&outside, "zeros").len(), size);
}

#[test]
fn file_of_a_lower_layer_gets_another_name() {
    let lower = Tar::new().file("lib/old").folder("lib").put(EntryType::Symlink, "lib/soft", "old", b"");
    let layer = Tar::new()
        .put(EntryType::Link, "bin/new", "lib/old", b"")
        .put(EntryType::Link, "bin/soft", "/lib/soft", b"")
        .file("lib/.wh.soft");
    let outside = stacked(&lower, &layer);
    let (old, new) = (about(&outside, "lib/old"), about(&outside, "bin/new"));
    assert_eq!((old.ino(), old.nlink()), (new.ino(), 2));
    assert_eq!((new.uid(), new.mode() & 0o7777, new.mtime(), new.len()), (33, 0o4755, 1_000, 4));
    assert_eq!(about(&outside, "lib").uid(), 33, "its folder has the attributes that it had");
    assert!(about(&outside, "bin/soft").is_symlink());
    assert!(is_whiteout(&outside, "lib/soft"), "a whiteout hides what was below, although it has another name now");
    for target in ["lib", "nowhere", "../../lib/none"] {
        let bad = Tar::new().put(EntryType::Link, "x", target, b"");
        let lower = [outside.path().join("lower")];
        assert!(bad.unpack_onto(&outside, &format!("bad {}", target.replace('/', " ")), &lower).is_err(), "{target}");
    }
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    let lower = Tar::new().file("a/gone").file("b/old");
    let outside = stacked(&lower, &Tar::new().file("a/.wh.gone").file("b/.wh..wh..opq").file("b/new"));
    assert!(is_whiteout(&outside, "a/gone") && hides_lower(&outside, "b"));
}

#[test]
fn whiteout_hides_lower_layers_only_whatever_its_place() {
    let lower = Tar::new().file("d/old").file("f");
    let (folder, file) = (Tar::new().folder("d").file("d/new").file(".wh.d"), Tar::new().file("f").file(".wh.f"));
    for (layer, name) in [(folder, "after"), (Tar::new().file(".wh.d").folder("d").file("d/new"), "before")] {
        let outside = stacked(&lower, &layer);
        assert!(hides_lower(&outside, "d") && about(&outside, "d/new").is_file(), "{name}");
    }
    let outside = stacked(&lower, &file);
    assert!(about(&outside, "f").is_file());
}

#[test]
fn whiteout_of_what_is_not_there_leaves_no_mark() {
    // Overlayfs shows marks in folders that it does not merge.
    let lower = Tar::new().file("d/old");
    let layer = Tar::new().file("d/.wh.old").file("d/.wh..wh..opq").file("new/.wh.ghost").folder("new");
    let outside = stacked(&lower, &layer);
    for folder in ["d", "new"] {
        assert_eq!(fs::read_dir(outside.path().join("layer").join(folder)).expect("a folder").count(), 0, "{folder}");
    }
}

#[test]
fn folder_that_is_not_listed_keeps_the_attributes_of_lower_layers() {
    let lower = Tar::new().with(
        |it| {
            it.path("home").entry_type(EntryType::Directory).add_pax("SCHILY.xattr.user.a", b"b");
        },
        b"",
    );
    let outside = stacked(&lower, &Tar::new().file("home/x").file("other/x"));
    let home = about(&outside, "home");
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777, home.mtime()), (33, 34, 0o4755, 1_000));
    let attribute = xattr::get(outside.path().join("layer/home"), "user.a").expect("readable");
    assert_eq!(attribute.as_deref(), Some(&b"b"[..]));
    let other = about(&outside, "other");
    assert_eq!((other.uid(), other.mode() & 0o7777), (0, 0o755), "no lower layer has it");
    let hidden = stacked(&lower, &Tar::new().put(EntryType::Regular, "home", "", b""));
    assert!(about(&hidden, "home").is_file());
}

#[test]
fn every_path_is_relative_to_the_root() {
    let tar = Tar::new()
        .file("/usr/bin/one")
        .put(EntryType::Link, "usr/bin/two", "/usr/bin/one", b"")
        .file("usr/bin/../lib/three")
        .put(EntryType::Link, "four", "../../usr/./bin/one", b"")
        .file("../../five");
    let (outside, result) = tar.unpack();
    result.expect("a good layer");
    assert_eq!(about(&outside, "usr/bin/one").nlink(), 3);
    assert!(about(&outside, "usr/lib/three").is_file() && about(&outside, "five").is_file());
}

#[test]
fn what_leads_out_is_refused_or_stays_inside() {
    // The whiteout names the parent folder.
    assert!(Tar::new().file(".wh...").unpack().1.is_err());
    assert!(Tar::new().file("a/.wh...").unpack().1.is_err());
    // Where layers are copied, a folder with this name would hide the folder above the root.
    for path in [".wh.../x", ".wh../x", "a/.wh.b/x"] {
        let error = Tar::new().file(path).unpack().1.expect_err("no folder has such a name");
        assert!(error.to_string().contains("the name of a whiteout"), "{path}: {error}");
    }
    // A link that the layer itself created is resolved inside the layer.
    let (outside, result) = Tar::new().put(EntryType::Symlink, "out", "/..", b"").file("out/x").unpack();
    result.expect("legal, and inside");
    assert!(outside.path().join("layer/x").exists());
    let (_outside, result) = Tar::new().put(EntryType::Link, "passwd", "../../etc/passwd", b"").unpack();
    assert!(result.is_err(), "a hard link out of the layer");
}

#[test]
fn devices_and_pipes_are_made() {
    let device = |kind, name: &'static str| {
        move |it: &mut EntryBuilder| {
            it.path(name).entry_type(kind).device(7, 300).expect("small");
        }
    };
    let tar = Tar::new()
        .with(device(EntryType::Char, "char"), b"")
        .with(device(EntryType::Block, "dev/block"), b"")
        .put(EntryType::Fifo, "pipe", "", b"");
    let (outside, result) = tar.unpack();
    result.expect("a good layer");
    assert!(about(&outside, "char").file_type().is_char_device());
    assert!(about(&outside, "dev/block").file_type().is_block_device());
    assert_eq!(about(&outside, "char").rdev(), makedev(7, 300));
    assert!(about(&outside, "pipe").file_type().is_fifo());
}

#[test]
fn sparse_files_have_their_holes_and_their_content() {
    let regions = [SparseEntry { offset: 4096, length: 3 }, SparseEntry { offset: 1 << 20, length: 2 }];
    let sparse = |it: &mut EntryBuilder| {
        it.path("sparse").sparse(&regions, 2 << 20);
    };
    let gnu = |mut tar: Tar| {
        let mut entry = EntryBuilder::new_gnu();
        sparse(&mut entry);
        tar.append(entry, b"abcde");
        tar
    };
    for tar in [Tar::new().with(sparse, b"abcde"), gnu(Tar::new())] {
        let (outside, result) = tar.file("next").unpack();
        result.expect("a good layer");
        let content = fs::read(outside.path().join("layer/sparse")).expect("a file");
        assert_eq!(content.len(), 2 << 20);
        assert_eq!((&content[4096..4099], &content[1 << 20..(1 << 20) + 3]), (&b"abc"[..], &b"de\0"[..]));
        assert!(about(&outside, "sparse").blocks() * 512 < 1 << 20, "the holes take no space");
        assert!(about(&outside, "next").is_file(), "the next entry is found");
    }
}

#[test]
fn odd_pax_records_are_read_as_other_tools_read_them() {
    let binary: &[u8] = b"\n\x01 5 a=b\n\0";
    let tar = Tar::new()
        .with(
            |it| {
                it.path("file").add_pax("SCHILY.xattr.user.binary", binary).add_pax("mtime", b"-1.25");
                it.add_pax("path", b"").add_pax("uid", b"").add_pax("comment", b"a=b=c");
            },
            b"text",
        )
        .file("next");
    let (outside, result) = tar.unpack();
    result.expect("a good layer");
    let file = about(&outside, "file");
    assert_eq!((file.uid(), file.mtime(), file.mtime_nsec()), (33, -2, 750_000_000));
    let attribute = xattr::get(outside.path().join("layer/file"), "user.binary").expect("readable");
    assert_eq!(attribute.as_deref(), Some(binary));
}

#[test]
fn layer_can_not_set_the_marks_of_overlayfs() {
    let opaque = |it: &mut EntryBuilder| {
        it.path("d").entry_type(EntryType::Directory).add_pax("SCHILY.xattr.trusted.overlay.opaque", b"y");
    };
    let (outside, result) = Tar::new().with(opaque, b"").unpack();
    result.expect("a good layer");
    assert!(!hides_lower(&outside, "d"));
}

#[test]
fn full_disk_is_not_taken_for_a_bad_archive() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let small = Some("size=64k");
    nix::mount::mount(Some("none"), dir.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), small).expect("a disk");
    let result = Tar::new().put(EntryType::Regular, "big", "", &[1; 200_000]).unpack_onto(&dir, "layer", &[]);
    nix::mount::umount(dir.path()).expect("it was mounted");
    assert_eq!(result.expect_err("a full disk").to_string(), "failed to unpack `big`: No space left on device");
}

#[test]
fn a_bomb_is_stopped_and_a_cut_tar_refused() {
    let mut header = EntryBuilder::new_gnu();
    header.path("bomb").size(10 << 30).expect("it fits");
    let error = Tar(header.finish_bytes()).unpack().1.expect_err("10 GiB from half a KiB");
    assert!(matches!(error, UnpackError::Bomb(_)), "{error}");
    let mut cut = Tar::new().put(EntryType::Regular, "file", "", &[1; 100_000]);
    cut.0.truncate(50_000);
    assert_eq!(cut.unpack().1.expect_err("half a file").to_string(), "it is cut off");
    let junk = Tar(vec![7; 2048]).unpack().1.expect_err("no archive");
    assert_eq!(junk.to_string(), "it is not a tar archive, or damaged");
}

#[test]
fn headers_that_are_read_into_memory_are_bounded() {
    let name = vec![b'x'; 2 << 20];
    let (_outside, result) = Tar::new().put(EntryType::GnuLongName, "././@LongLink", "", &name).file("a").unpack();
    assert!(matches!(result, Err(UnpackError::Tar(TarError::Malformed(_)))), "{result:?}");
    // The map of this sparse file never ends.
    let endless = |it: &mut EntryBuilder| {
        it.path("a").add_pax("GNU.sparse.major", b"1").add_pax("GNU.sparse.minor", b"0");
        it.add_pax("GNU.sparse.realsize", b"1");
    };
    let (_outside, result) = Tar::new().with(endless, &vec![b'1'; 10 << 20]).unpack();
    assert!(matches!(result, Err(UnpackError::Tar(TarError::Headers))), "{result:?}");
    let short = "y".repeat(200);
    let (outside, result) = Tar::new().file(&short).unpack();
    result.expect("a long name that is not too long");
    assert!(outside.path().join("layer").join(short).exists());
}
