//! The files of the Container Device Interface on this node, and the devices that they describe. Of the folders, a later one
//! has priority over an earlier one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flota_api::model::CdiName;

use super::file::{CdiFile, ContainerEdits, Encoding};

/// Largest file in bytes.
const FILE_BOUND: u64 = 4 << 20;
/// Largest number of files of a folder; the others are left out.
const FILES_BOUND: usize = 1_024;

/// Everything that the folders held when they were read.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    files: Vec<CdiFile>,
    devices: BTreeMap<CdiName, Described>,
    /// Files and folders that can't be used, and why.
    pub(super) broken: BTreeMap<PathBuf, String>,
}

/// Where a device is described.
#[derive(Debug)]
enum Described {
    /// In the file with this index, which is at this path.
    In(usize, PathBuf),
    /// In both of these files of one folder, so that it is open which of them is meant.
    Twice(PathBuf, PathBuf),
}

/// A device in the catalog.
#[derive(Clone, Copy, Debug)]
pub(super) struct CatalogEntry<'a> {
    /// Identifies its file.
    pub(super) file: usize,
    /// The edits for every container that gets a device of its file.
    pub(super) of_file: &'a ContainerEdits,
    pub(super) own: &'a ContainerEdits,
}

/// Why a device is not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Unknown,
    Twice(PathBuf, PathBuf),
}

/// Returns the paths of the files in a folder, sorted.
pub(super) fn paths(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if encoding(&path).is_some() && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    found.truncate(FILES_BOUND);
    Ok(found)
}

fn encoding(path: &Path) -> Option<Encoding> {
    match path.extension().and_then(OsStr::to_str) {
        Some("json") => Some(Encoding::Json),
        Some("yaml") => Some(Encoding::Yaml),
        _ => None,
    }
}

impl Catalog {
    /// Reads all files. What can't be used is in `broken`.
    pub(super) fn read(folders: &[PathBuf]) -> Self {
        let mut catalog = Self::default();
        for folder in folders {
            match paths(folder) {
                Ok(paths) => catalog.add_folder(&paths),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => drop(catalog.broken.insert(folder.clone(), error.to_string())),
            }
        }
        catalog
    }

    fn add_folder(&mut self, paths: &[PathBuf]) {
        let mut of_folder: BTreeMap<CdiName, Described> = BTreeMap::new();
        for path in paths {
            match read(path) {
                Ok(file) => {
                    for name in file.devices.keys() {
                        let place = match of_folder.remove(name) {
                            None => Described::In(self.files.len(), path.clone()),
                            Some(Described::In(_, first) | Described::Twice(first, _)) => {
                                Described::Twice(first, path.clone())
                            }
                        };
                        of_folder.insert(name.clone(), place);
                    }
                    self.files.push(file);
                }
                Err(why) => drop(self.broken.insert(path.clone(), why)),
            }
        }
        self.devices.extend(of_folder);
    }

    /// Returns the names of the devices that tasks can get, sorted.
    pub(super) fn names(&self) -> Vec<CdiName> {
        let usable = self.devices.iter().filter(|(_, place)| matches!(place, Described::In(..)));
        usable.map(|(name, _)| name.clone()).collect()
    }

    /// Returns the devices that two files of one folder describe, with these files.
    pub(super) fn conflicts(&self) -> BTreeMap<CdiName, (PathBuf, PathBuf)> {
        let conflict = |(name, place): (&CdiName, &Described)| match place {
            Described::In(..) => None,
            Described::Twice(first, second) => Some((name.clone(), (first.clone(), second.clone()))),
        };
        self.devices.iter().filter_map(conflict).collect()
    }

    /// Finds a device.
    pub(super) fn find(&self, name: &CdiName) -> Result<CatalogEntry<'_>, Missing> {
        let file = match self.devices.get(name) {
            None => return Err(Missing::Unknown),
            Some(Described::Twice(first, second)) => return Err(Missing::Twice(first.clone(), second.clone())),
            Some(Described::In(file, _)) => *file,
        };
        let whole = self.files.get(file).ok_or(Missing::Unknown)?;
        let own = whole.devices.get(name).ok_or(Missing::Unknown)?;
        Ok(CatalogEntry { file, of_file: &whole.edits, own })
    }
}

fn read(path: &Path) -> Result<CdiFile, String> {
    let encoding = encoding(path).ok_or("its name ends neither in .json nor in .yaml")?;
    // A pipe would never end.
    let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("it is not a file".to_owned());
    }
    // What it names is mounted and run by root.
    if about.uid() != 0 || about.mode() & 0o022 != 0 {
        return Err("others than root can write it".to_owned());
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BOUND + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BOUND {
        return Err(format!("it is larger than {FILE_BOUND} bytes"));
    }
    CdiFile::parse(&text, encoding)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Returns a file whose devices each set a variable to `value`.
    fn text(names: &[&str], value: &str) -> String {
        let device = |name: &&str| format!("- name: {name}\n  containerEdits:\n    env: [V={value}]\n");
        let devices: String = names.iter().map(device).collect();
        format!("cdiVersion: 0.6.0\nkind: v.com/c\ndevices:\n{devices}")
    }

    fn value(catalog: &Catalog, name: &str) -> Result<String, Missing> {
        let found = catalog.find(&format!("v.com/c={name}").parse().expect("a name"))?;
        Ok(found.own.env.join(" "))
    }

    #[test]
    fn a_later_folder_has_priority_and_a_conflict_in_one_makes_a_device_unusable() {
        let dir = tempfile::tempdir().expect("a folder");
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        for (folder, name, text) in [
            (&etc, "a.yaml", text(&["own", "both", "twice", "thrice", "mended"], "etc-a")),
            (&etc, "b.yaml", text(&["twice", "thrice", "mended"], "etc-b")),
            (&etc, "c.yaml", text(&["thrice"], "etc-c")),
            (&run, "a.yaml", text(&["both", "mended"], "run-a")),
        ] {
            std::fs::create_dir_all(folder).expect("a folder");
            std::fs::write(folder.join(name), text).expect("a file");
        }
        let catalog = Catalog::read(&[etc.clone(), run, dir.path().join("none")]);
        let value = |name: &str| value(&catalog, name);
        assert_eq!((value("own"), value("both")), (Ok("V=etc-a".into()), Ok("V=run-a".into())));
        assert_eq!(value("twice"), Err(Missing::Twice(etc.join("a.yaml"), etc.join("b.yaml"))));
        assert_eq!(value("thrice"), Err(Missing::Twice(etc.join("a.yaml"), etc.join("c.yaml"))));
        assert_eq!(value("mended"), Ok("V=run-a".into()), "the folder with priority has it once");
        assert_eq!(value("none"), Err(Missing::Unknown));
        let names: Vec<_> = catalog.names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["v.com/c=both", "v.com/c=mended", "v.com/c=own"]);
        assert_eq!(catalog.conflicts().len(), 2);
        assert!(catalog.broken.is_empty(), "{:?}", catalog.broken);
    }

    #[test]
    fn a_broken_file_hides_its_own_devices_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        write("good.yaml", &text(&["good"], "1"));
        write("broken.yaml", &text(&["broken"], "1").replace("0.6.0", "9.0.0"));
        write("cut.json", "{\"cdiVersion\":");
        write("other.yml", &text(&["other"], "1"));
        write("spec.123.tmp", "");
        write("open.yaml", &text(&["open"], "1"));
        std::fs::set_permissions(dir.path().join("open.yaml"), PermissionsExt::from_mode(0o666)).expect("it is there");
        std::os::unix::fs::symlink("nowhere", dir.path().join("link.json")).expect("a link");
        std::fs::create_dir(dir.path().join("folder.json")).expect("a folder");
        nix::unistd::mkfifo(&dir.path().join("pipe.json"), nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        let catalog = Catalog::read(&[dir.path().to_owned(), "/dev/null".into()]);
        assert_eq!(catalog.names().len(), 1);
        assert_eq!((value(&catalog, "good"), value(&catalog, "broken")), (Ok("V=1".into()), Err(Missing::Unknown)));
        assert_eq!(value(&catalog, "open"), Err(Missing::Unknown), "anybody can write what root would run");
        let broken: Vec<_> = catalog.broken.keys().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(broken, ["null", "broken.yaml", "cut.json", "link.json", "open.yaml", "pipe.json"]);
    }
}
