//! Generates images whose layers do what layers may do: replace, hide and link files, list folders or not, and describe
//! them in all forms that tools write. A seed decides everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, HEADER_SIZE, SparseEntry};

const PARTS: [&str; 6] =
    ["a", "b", "c", "d e", "ü", "long-name-that-does-not-fit-into-a-header-of-ustar-0123456789-0123456789"];
const MODES: [u32; 6] = [0o644, 0o755, 0o4755, 0o1777, 0o700, 0o2750];
const OWNERS: [u64; 4] = [0, 1000, 65_534, 3_000_000];

/// An image and what its layers do.
pub(crate) struct Image {
    layers: Vec<Vec<u8>>,
    /// One line for each entry.
    script: Vec<String>,
    seed: u64,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image {}:\n{}", self.seed, self.script.join("\n"))
    }
}

/// The file that is visible at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
    Other,
}

/// The properties of a file in its header, beside its extended attributes.
#[derive(Clone, Copy)]
struct Attributes {
    uid: u64,
    gid: u64,
    mode: u32,
    mtime: u64,
    /// Whether a record of PAX gives another time, with a fraction.
    is_precise: bool,
}

impl Attributes {
    fn write(self, header: &mut EntryBuilder) {
        header.mode(self.mode).unwrap().uid(self.uid).unwrap().gid(self.gid).unwrap().mtime(self.mtime).unwrap();
        if self.is_precise {
            header.add_pax("mtime", b"1234567890.123456789");
            header.add_pax("uname", b"");
        }
    }
}

struct Generator {
    rng: SmallRng,
    /// The files of the lower layers.
    below: BTreeMap<String, Kind>,
    /// The files of the layer that is being made.
    own: BTreeMap<String, Kind>,
    /// Files with several names. Later layers leave them alone: the count of links of a mounted layer does not change.
    linked: BTreeSet<String>,
    /// Those of each file. A hard link repeats them, because some tools set them once more.
    attributes: BTreeMap<String, Attributes>,
    layer: Vec<u8>,
    script: Vec<String>,
}

impl Generator {
    fn path(&mut self) -> String {
        let depth = self.rng.random_range(1..=3);
        (0..depth).map(|_| *PARTS.choose(&mut self.rng).unwrap()).collect::<Vec<_>>().join("/")
    }

    /// Whether every folder above the path is a folder or new, so that no tool has to guess.
    fn fits(&self, path: &str) -> bool {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let mut above = above.map(|it| self.own.get(it).or(self.below.get(it)));
        let is_linked = self.linked.iter().any(|it| it == path || it.starts_with(&format!("{path}/")));
        !is_linked && !self.own.contains_key(path) && above.all(|kind| kind.is_none_or(|kind| *kind == Kind::Folder))
    }

    fn has_own_below(&self, path: &str) -> bool {
        self.own.keys().any(|it| it.starts_with(&format!("{path}/")))
    }

    fn add(&mut self, path: &str, kind: Kind) {
        for (at, _) in path.match_indices('/') {
            self.own.insert(path[..at].to_owned(), Kind::Folder);
        }
        self.own.insert(path.to_owned(), kind);
    }

    /// A header with random attributes, in the form of GNU or of PAX.
    fn header(&mut self, path: &str, kind: EntryType) -> EntryBuilder {
        let mut attributes = self.random_attributes();
        if kind == EntryType::Directory {
            // Tools differ in what a folder that no layer lists gets from one above with this bit.
            attributes.mode &= !0o2000;
        }
        self.header_with(attributes, path, kind)
    }

    fn random_attributes(&mut self) -> Attributes {
        Attributes {
            uid: *OWNERS.choose(&mut self.rng).unwrap(),
            gid: *OWNERS.choose(&mut self.rng).unwrap(),
            mode: *MODES.choose(&mut self.rng).unwrap(),
            mtime: self.rng.random_range(0..2_000_000_000),
            is_precise: self.rng.random(),
        }
    }

    fn header_with(&mut self, attributes: Attributes, path: &str, kind: EntryType) -> EntryBuilder {
        // In all layers or in none, because containerd leaves a folder what lower layers gave it, and others do not.
        let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
        let is_marked = kind == EntryType::Directory && name.len().is_multiple_of(2);
        let is_gnu = !is_marked && !attributes.is_precise && self.rng.random();
        let mut header = if is_gnu { EntryBuilder::new_gnu() } else { EntryBuilder::new_ustar() };
        header.path(path).entry_type(kind);
        attributes.write(&mut header);
        if is_marked || (!is_gnu && kind == EntryType::Regular && self.rng.random()) {
            header.add_pax("SCHILY.xattr.user.binary", b"a\n9 b=c\n\0");
            header.add_pax("comment", b"=");
        }
        header
    }

    fn put(&mut self, mut header: EntryBuilder, content: &[u8], what: String) {
        header.size(content.len() as u64).unwrap();
        self.layer.extend(header.finish_bytes());
        self.layer.extend_from_slice(content);
        self.layer.resize(self.layer.len().next_multiple_of(HEADER_SIZE), 0);
        self.script.push(what);
    }

    /// The path in one of the forms that tools write.
    fn written(&mut self, path: &str) -> String {
        let prefix = *["", "./", "/", "a/../"].choose(&mut self.rng).unwrap();
        // If `a` is a symbolic link, containerd goes up from where it leads to, and umoci and Docker from where it lies.
        let is_clear = self.own.get("a").or(self.below.get("a")).is_none_or(|kind| *kind == Kind::Folder);
        if is_clear { format!("{prefix}{path}") } else { format!("{}{path}", prefix.trim_start_matches("a/..")) }
    }

    fn step(&mut self) {
        let path = self.path();
        if !self.fits(&path) {
            return;
        }
        let written = self.written(&path);
        match self.rng.random_range(0..20) {
            0..=3 => {
                let header = self.header(&format!("{written}/"), EntryType::Directory);
                self.put(header, b"", format!("folder {written}"));
                self.add(&path, Kind::Folder);
            }
            4..=9 => {
                let content = vec![b'x'; self.rng.random_range(0..3000)];
                let attributes = self.random_attributes();
                self.attributes.insert(path.clone(), attributes);
                let header = self.header_with(attributes, &written, EntryType::Regular);
                self.put(header, &content, format!("file {written}"));
                self.add(&path, Kind::File);
            }
            10 => {
                let regions = [SparseEntry { offset: 8192, length: 5 }, SparseEntry { offset: 300_000, length: 700 }];
                // Other tools refuse the form of GNU.
                let mut header = EntryBuilder::new_ustar();
                let attributes = Attributes { uid: 0, gid: 0, mode: 0o640, mtime: 1, is_precise: false };
                self.attributes.insert(path.clone(), attributes);
                header.path(&path);
                attributes.write(&mut header);
                header.sparse(&regions, 400_000);
                self.put(header, &[b's'; 705], format!("sparse {path}"));
                self.add(&path, Kind::File);
            }
            11 | 12 => {
                let mut header = self.header(&written, EntryType::Symlink);
                header.link_name(*["../a", "/b/c", "nowhere"].choose(&mut self.rng).unwrap());
                self.put(header, b"", format!("symlink {written}"));
                self.add(&path, Kind::Other);
            }
            13 | 14 => self.hard_link(&path, &written),
            15 => {
                let kind = *[EntryType::Fifo, EntryType::Char, EntryType::Block].choose(&mut self.rng).unwrap();
                let mut header = self.header(&written, kind);
                header.device(1, 3).unwrap();
                self.put(header, b"", format!("{kind:?} {written}"));
                self.add(&path, Kind::Other);
            }
            _ => self.hide(),
        }
    }

    fn hard_link(&mut self, path: &str, written: &str) {
        let own = self.own.iter().filter(|(_, kind)| **kind == Kind::File);
        let below = self.below.iter().filter(|(path, kind)| **kind == Kind::File && self.fits(path));
        let replaced = format!("{path}/");
        let files =
            own.chain(below).map(|(path, _)| path.clone()).filter(|it| *it != path && !it.starts_with(&replaced));
        let files: Vec<String> = files.collect();
        let Some(target) = files.choose(&mut self.rng).cloned() else { return };
        self.linked.extend([path.to_owned(), target.clone()]);
        self.add(&target, Kind::File);
        let attributes = self.attributes[&target];
        let target = self.written(&target);
        let mut header = self.header_with(attributes, written, EntryType::Link);
        header.link_name(&target);
        self.put(header, b"", format!("link {written} to {target}"));
        self.add(path, Kind::Other);
    }

    /// Hides something of the lower layers that this layer does not touch.
    fn hide(&mut self) {
        let candidates: Vec<_> =
            self.below.iter().filter(|(path, _)| self.fits(path) && !self.has_own_below(path)).collect();
        let Some((path, kind)) = candidates.choose(&mut self.rng).map(|(path, kind)| ((*path).clone(), **kind)) else {
            return;
        };
        let is_opaque = kind == Kind::Folder && self.rng.random();
        let name = if is_opaque {
            let header = self.header(&path, EntryType::Directory);
            self.put(header, b"", format!("folder {path}"));
            self.add(&path, Kind::Folder);
            format!("{path}/.wh..wh..opq")
        } else {
            let (above, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(above, name)| (above, name));
            if above.is_empty() { format!(".wh.{name}") } else { format!("{above}/.wh.{name}") }
        };
        self.below.retain(|it, _| !it.starts_with(&format!("{path}/")) && (is_opaque || *it != path));
        // Nothing else of this layer may take the place, because tools differ in what they then hide.
        self.own.insert(path, Kind::Other);
        let mut header = EntryBuilder::new_gnu();
        header.path(&name).mode(0o644).unwrap();
        self.put(header, b"", format!("whiteout {name}"));
    }

    fn finish_layer(&mut self) -> Vec<u8> {
        self.script.push("-- next layer".into());
        for (path, kind) in std::mem::take(&mut self.own) {
            if kind != Kind::Folder {
                self.below.retain(|it, _| !it.starts_with(&format!("{path}/")));
            }
            self.below.insert(path, kind);
        }
        let mut layer = std::mem::take(&mut self.layer);
        layer.resize(layer.len() + 2 * HEADER_SIZE, 0);
        layer
    }
}

impl Image {
    pub(crate) fn generate(seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        let (below, own) = (BTreeMap::new(), BTreeMap::new());
        let (linked, attributes) = (BTreeSet::new(), BTreeMap::new());
        let mut generator = Generator { rng, below, own, linked, attributes, layer: Vec::new(), script: Vec::new() };
        let count = generator.rng.random_range(2..=4);
        let layers = (0..count).map(|_| {
            for _ in 0..generator.rng.random_range(1..25) {
                generator.step();
            }
            generator.finish_layer()
        });
        let layers = layers.collect();
        Self { layers, script: generator.script, seed }
    }

    /// The digest of all layers on top of each other (OCI image specification, "Layer ChainID").
    pub(crate) fn chain(&self) -> String {
        let digest = |bytes: &[u8]| format!("sha256:{:x}", Sha256::digest(bytes));
        let layers = self.layers.iter().map(|layer| digest(layer));
        layers.reduce(|below, layer| digest(format!("{below} {layer}").as_bytes())).unwrap()
    }

    /// The files of an OCI image layout.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        let mut blob = |kind: &str, bytes: Vec<u8>| {
            let hex = format!("{:x}", Sha256::digest(&bytes));
            let size = bytes.len();
            files.push((format!("blobs/sha256/{hex}"), bytes));
            json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{hex}"), "size": size })
        };
        let layers: Vec<_> = self.layers.iter().map(|layer| blob("layer.v1.tar", layer.clone())).collect();
        let ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
        let config = json!({ "architecture": oci_spec::image::Arch::default().to_string(), "os": "linux",
            "config": {}, "rootfs": { "type": "layers", "diff_ids": ids } });
        let config = blob("config.v1+json", config.to_string().into_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
        let mut manifest = blob("manifest.v1+json", manifest.to_string().into_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "box" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        files.push(("index.json".into(), index.to_string().into_bytes()));
        files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files
    }

    pub(crate) fn write_layout(&self, dir: &Path) {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (name, bytes) in self.files() {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    pub(crate) fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, bytes) in self.files() {
            let mut entry = EntryBuilder::new_ustar();
            entry.path(&name).size(bytes.len() as u64).unwrap().mode(0o644).unwrap();
            archive.extend(entry.finish_bytes());
            archive.extend_from_slice(&bytes);
            archive.resize(archive.len().next_multiple_of(HEADER_SIZE), 0);
        }
        archive.resize(archive.len() + 2 * HEADER_SIZE, 0);
        archive
    }
}
