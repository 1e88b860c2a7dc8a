//! Limits into the files of the controllers, v1 and v2. A limit that can't be set here is refused, with the
//! controller's name: a limit that is silently absent is a lie.

use super::Folder;
use crate::Limits;
use crate::error::StepError;

/// Of the CPU controller, in µs; as Docker has it.
const PERIOD: u64 = 100_000;

/// What a container may reach of /dev (OCI runtime specification, "Default Devices"), and nothing else. `c *:* m`
/// lets it make nodes that it then can't open.
const DEVICES: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

pub(super) fn apply(folders: &[Folder], limits: &Limits) -> Result<(), StepError> {
    let with = |controller: &str, limit: &str| {
        let found = folders.iter().find(|folder| folder.has(controller));
        found.ok_or_else(|| {
            StepError::refuse(format!("limit {limit}"), format!("this machine has no `{controller}` cgroup controller"))
        })
    };
    if limits.memory > 0 {
        let folder = with("memory", "memory")?;
        let value = limits.memory.to_string();
        folder.write(if folder.v2 { "memory.max" } else { "memory.limit_in_bytes" }, &value)?;
        // Swap would make the limit a wish. Absent where the kernel does not account for it.
        let swap = if folder.v2 { ("memory.swap.max", "0") } else { ("memory.memsw.limit_in_bytes", value.as_str()) };
        if folder.path.join(swap.0).exists() {
            folder.write(swap.0, swap.1)?;
        }
    }
    if limits.nano_cpus > 0 {
        let folder = with("cpu", "CPU")?;
        // At least 1 ms in a period, which is the kernel's least.
        let quota = (u128::from(limits.nano_cpus) * u128::from(PERIOD) / 1_000_000_000).max(1_000);
        if folder.v2 {
            folder.write("cpu.max", &format!("{quota} {PERIOD}"))?;
        } else {
            folder.write("cpu.cfs_period_us", &PERIOD.to_string())?;
            folder.write("cpu.cfs_quota_us", &quota.to_string())?;
        }
    }
    if limits.pids > 0 {
        with("pids", "processes")?.write("pids.max", &limits.pids.to_string())?;
    }
    if let Some(folder) = folders.iter().find(|folder| !folder.v2 && folder.has("devices")) {
        folder.write("devices.deny", "a")?;
        DEVICES.iter().try_for_each(|rule| folder.write("devices.allow", rule))?;
    }
    Ok(())
}

/// Whether device rules are enforced here: a container may make nodes only where they are.
pub(crate) fn guards_devices(folders: &[Folder]) -> bool {
    folders.iter().any(|folder| !folder.v2 && folder.has("devices"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(dir: &std::path::Path, controllers: &[&str], v2: bool) -> Folder {
        let path = dir.join(controllers.join(","));
        fs::create_dir_all(&path).expect("in a temporary folder");
        Folder { path, controllers: controllers.iter().map(|it| (*it).to_owned()).collect(), v2 }
    }

    #[test]
    fn limits_go_into_the_files_of_either_version() {
        let dir = std::env::temp_dir().join(format!("flota-limits-{}", std::process::id()));
        let limits = Limits { memory: 64 << 20, nano_cpus: 500_000_000, pids: 7 };
        let v1 = ["memory", "cpu", "pids"].map(|it| folder(&dir, &[it], false));
        apply(&v1, &limits).expect("ordinary files take anything");
        let read = |folder: &Folder, file: &str| fs::read_to_string(folder.path.join(file)).expect("written");
        assert_eq!(read(&v1[0], "memory.limit_in_bytes"), "67108864");
        assert_eq!(
            (read(&v1[1], "cpu.cfs_quota_us"), read(&v1[1], "cpu.cfs_period_us")),
            ("50000".into(), "100000".into())
        );
        assert_eq!(read(&v1[2], "pids.max"), "7");
        let v2 = [folder(&dir, &["memory", "cpu", "pids"], true)];
        apply(&v2, &limits).expect("ordinary files take anything");
        assert_eq!((read(&v2[0], "memory.max"), read(&v2[0], "cpu.max")), ("67108864".into(), "50000 100000".into()));
        let refused = apply(&v1[1..], &limits).expect_err("there is no memory controller");
        assert_eq!(refused.to_string(), "failed to limit memory: this machine has no `memory` cgroup controller");
        fs::remove_dir_all(dir).expect("its own folder");
    }
}
