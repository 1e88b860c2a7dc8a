//! `linux.resources.unified`: files of cgroup v2 by name (config-linux.md, "Unified"). On a hybrid machine it is
//! limited to the controllers on the v2 side.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Groups, Step, Write, refuse};
use crate::error::StepError;

const FIELD: &str = "unified";

pub(super) fn plan<'a>(groups: &'a Groups, files: &'a BTreeMap<String, String>) -> Result<Vec<Step<'a>>, StepError> {
    let mut steps = Vec::new();
    for (file, value) in files {
        let Some(folder) = groups.folders.iter().find(|folder| folder.v2) else {
            return Err(refuse(FIELD, "this machine has no cgroup v2"));
        };
        let controller = match file.split_once('.') {
            Some((controller, _)) if !file.contains('/') => controller,
            _ => return Err(refuse(FIELD, format!("`{file}` is not a file of a controller (like memory.high)"))),
        };
        if controller != "cgroup" && !folder.has(controller) {
            let why = format!("`{file}`: this machine has no `{controller}` controller of cgroup v2");
            return Err(refuse(FIELD, why));
        }
        // The kernel accepts one line per write.
        let writes = value.lines().map(|line| Write::new(FIELD, file.clone(), line)).collect();
        steps.push(Step { folder, controller: Cow::from(controller), writes });
    }
    Ok(steps)
}
