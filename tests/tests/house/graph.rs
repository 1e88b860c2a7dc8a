//! Which module of a crate imports which, and the circles among them.
//!
//! An import counts for the module that defines the name, also when it is reached through a re-export.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::source::{FileModule, Module};

/// A module by its names from the crate's root, which has none.
pub(crate) type ModulePath = Vec<String>;

/// Where a module's file is, and where those of its children are.
struct Place {
    folder: PathBuf,
    below: PathBuf,
}

/// The modules of one crate.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    modules: BTreeMap<ModulePath, Module>,
    /// Importing and defining module, and one path by which it is imported.
    pub(crate) edges: BTreeMap<(ModulePath, ModulePath), String>,
}

impl Graph {
    /// Reads a crate, from its root file on. `read` returns the text of a file, if there is one.
    pub(crate) fn of_crate(root: &Path, read: &impl Fn(&Path) -> Option<String>) -> Self {
        let mut graph = Self::default();
        let text = read(root).unwrap_or_else(|| panic!("{} is there", root.display()));
        let place = Place { folder: folder_of(root), below: folder_of(root) };
        graph.add(Vec::new(), Module::read(&text), &place, read);
        graph.connect();
        graph
    }

    fn add(&mut self, path: ModulePath, mut module: Module, place: &Place, read: &impl Fn(&Path) -> Option<String>) {
        for (name, inner) in std::mem::take(&mut module.inline) {
            let below = place.below.join(&name);
            self.add(extended(&path, &name), inner, &Place { folder: below.clone(), below }, read);
        }
        for FileModule { name, path: named } in &module.files {
            let files = match named {
                Some(named) => vec![place.folder.join(named)],
                None => vec![place.below.join(format!("{name}.rs")), place.below.join(name).join("mod.rs")],
            };
            let found = files.iter().find_map(|file| Some((file, read(file)?)));
            let (file, text) = found.unwrap_or_else(|| panic!("{} is there", files[0].display()));
            let folder = folder_of(file);
            // Beside a file that an attribute names, as beside a `mod.rs`.
            let below = if named.is_some() || file.ends_with("mod.rs") { folder.clone() } else { folder.join(name) };
            self.add(extended(&path, name), Module::read(&text), &Place { folder, below }, read);
        }
        self.modules.insert(path, module);
    }

    fn connect(&mut self) {
        let mut edges = BTreeMap::new();
        for (from, module) in &self.modules {
            for path in module.imports.iter().map(|it| &it.path).chain(&module.paths) {
                let to = self.resolve(from, path, 0).filter(|to| to != from);
                if let Some(to) = to {
                    edges.entry((from.clone(), to)).or_insert_with(|| path.join("::"));
                }
            }
        }
        self.edges = edges;
    }

    /// Returns the module that defines what `path` means in `from`; `None` if that is outside of the crate.
    fn resolve(&self, from: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
        /// A longer chain of re-exports is a circle of them.
        const DEPTH: usize = 16;
        let first = path.first().filter(|_| depth < DEPTH)?;
        let mut rest = path;
        let mut module = from.clone();
        match first.as_str() {
            "crate" => (module, rest) = (Vec::new(), &path[1..]),
            "self" | "super" => {
                while let Some(step) = rest.first().filter(|it| *it == "self" || *it == "super") {
                    if step == "super" {
                        module.pop();
                    }
                    rest = &rest[1..];
                }
            }
            name if self.modules.contains_key(&extended(from, name)) => {}
            _ => return self.import(from, path, depth),
        }
        while let Some(name) = rest.first() {
            let below = extended(&module, name);
            if !self.modules.contains_key(&below) {
                return Some(self.import(&module, rest, depth).unwrap_or(module));
            }
            (module, rest) = (below, &rest[1..]);
        }
        Some(module)
    }

    /// Returns the module that defines what `path` means in `module`, if `module` itself imports it.
    fn import(&self, module: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
        let it = self.modules.get(module)?;
        if it.definitions.contains(&path[0]) {
            return None;
        }
        if let Some(import) = it.imports.iter().find(|import| import.name == path[0] && import.path != path) {
            let whole: Vec<String> = import.path.iter().chain(&path[1..]).cloned().collect();
            return self.resolve(module, &whole, depth + 1);
        }
        let globs = it.imports.iter().filter(|import| import.name == "*");
        globs.filter_map(|glob| self.resolve(module, &glob.path, depth + 1)).find_map(|target| {
            let defines = self.modules[&target].definitions.contains(&path[0]);
            if defines { Some(target) } else { self.import(&target, path, depth + 1) }
        })
    }

    /// Returns every circle, each as the list of imports that make it up.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for parent in self.modules.keys() {
            // A child stands for everything below it.
            let child = |module: &ModulePath| module.starts_with(parent).then(|| module.get(parent.len()).cloned())?;
            let mut inner: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (from, to) in self.edges.keys() {
                if let (Some(from), Some(to)) = (child(from), child(to)) {
                    inner.entry(from).or_default().insert(to);
                }
            }
            for circle in components(&inner) {
                let within = |module| child(module).filter(|it| circle.contains(it));
                let edges = self.edges.iter().filter(|((from, to), _)| {
                    within(from).is_some() && within(to).is_some() && child(from) != child(to)
                });
                found.push(edges.map(|((from, _), path)| format!("{} imports {path}", from.join("::"))).collect());
            }
        }
        found
    }
}

fn folder_of(file: &Path) -> PathBuf {
    file.parent().expect("a file is in a folder").to_owned()
}

fn extended(path: &ModulePath, name: &str) -> ModulePath {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

/// Returns the sets of at least two nodes of which each reaches each.
fn components(edges: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &String| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(node) = next.pop() {
            let new = edges.get(&node).into_iter().flatten().filter(|it| reached.insert((*it).clone()));
            next.extend(new.cloned());
        }
        reached
    };
    let all: BTreeMap<&String, BTreeSet<String>> = edges.keys().map(|node| (node, reached(node))).collect();
    let circle = |(node, reached): (&&String, &BTreeSet<String>)| {
        let both = reached.iter().filter(|it| all.get(it).is_some_and(|back| back.contains(*node)));
        let both: BTreeSet<String> = both.cloned().collect();
        (both.len() > 1).then_some(both)
    };
    all.iter().filter_map(circle).collect()
}
