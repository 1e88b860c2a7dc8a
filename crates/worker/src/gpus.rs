//! GPUs of this machine, detected by the device nodes in `/dev` without any tool of a driver. NVIDIA GPUs have nodes
//! of their own; of others only the render nodes are given, which can compute but not change what a screen shows.

use flota_api::model::NodeDevice;

/// Kind of these devices, as specs request it.
const KIND: &str = "gpu";
/// Device nodes of the driver, which every task with a GPU needs.
const NVIDIA_SHARED: [&str; 2] = ["nvidiactl", "nvidia-uvm"];

/// Returns every GPU of this machine.
pub(crate) fn find() -> Vec<NodeDevice> {
    gpus(&names("/dev"), &names("/dev/dri"))
}

/// Returns the file names in a folder; none if it does not exist.
fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Derives the GPUs from the file names in `/dev` and in `/dev/dri`, in the order of their numbers.
fn gpus(dev: &[String], dri: &[String]) -> Vec<NodeDevice> {
    let nvidia = numbered(dev, "nvidia");
    if nvidia.is_empty() {
        let render = numbered(dri, "renderD").into_iter();
        return render.map(|name| gpu(&name, vec![format!("/dev/dri/{name}")])).collect();
    }
    let shared = NVIDIA_SHARED.iter().filter(|name| dev.iter().any(|it| it == *name));
    let shared: Vec<String> = shared.map(|name| format!("/dev/{name}")).collect();
    let paths = |name: &str| [format!("/dev/{name}")].into_iter().chain(shared.clone()).collect();
    nvidia.iter().map(|name| gpu(name, paths(name))).collect()
}

fn gpu(id: &str, paths: Vec<String>) -> NodeDevice {
    NodeDevice { kind: KIND.to_owned(), id: id.to_owned(), paths }
}

/// Returns the names that consist of `prefix` and a number, sorted by number.
fn numbered(names: &[String], prefix: &str) -> Vec<String> {
    let number = |name: &String| {
        let digits = name.strip_prefix(prefix)?;
        let plain = digits.bytes().all(|it| it.is_ascii_digit());
        plain.then(|| digits.parse::<u32>().ok()).flatten().map(|number| (number, name.clone()))
    };
    let mut found: Vec<(u32, String)> = names.iter().filter_map(number).collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_found_by_the_names_in_dev() {
        for (dev, dri, expected) in [
            ("null tty0", "", &[][..]),
            (
                "null dri",
                "card0 renderD129 renderD128 by-path",
                &["renderD128: /dev/dri/renderD128", "renderD129: /dev/dri/renderD129"],
            ),
            // A render node beside NVIDIA's own nodes is the same GPU again.
            (
                "nvidia0 nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset nvidia-caps",
                "renderD128",
                &["nvidia0: /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm"],
            ),
            (
                "nvidia10 nvidia2 nvidiactl",
                "",
                &["nvidia2: /dev/nvidia2 /dev/nvidiactl", "nvidia10: /dev/nvidia10 /dev/nvidiactl"],
            ),
            ("nvidia nvidia+1 nvidia-1 nvidia0x nvidia99999999999", "renderD", &[]),
        ] {
            let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let found = gpus(&names(dev), &names(dri));
            let shown: Vec<String> = found.iter().map(|it| format!("{}: {}", it.id, it.paths.join(" "))).collect();
            assert_eq!(shown, expected, "{dev} | {dri}");
            assert!(found.iter().all(|it| it.kind == "gpu"));
        }
    }
}
