//! `update`: builds limits from flags or a file.

use std::path::Path;

use flota_runtime::oci::{BlockIo, Memory, Pids, Resources, parse_json, read_json};
use flota_runtime::{Container, RunError};

use crate::arguments::Update;

pub(crate) fn update(root: &Path, it: &Update) -> Result<i32, RunError> {
    let container = Container::load(root, &it.id)?;
    let resources = match &it.resources {
        Some(path) if path == Path::new("-") => parse_json(std::io::stdin(), "standard input")?,
        Some(path) => read_json(path)?,
        None => from_flags(it)?,
    };
    container.update(&resources)?;
    Ok(0)
}

fn from_flags(it: &Update) -> Result<Resources, RunError> {
    let mut resources = Resources::default();
    let cpu = resources.cpu.get_or_insert_default();
    cpu.shares = it.cpu_share;
    cpu.period = it.cpu_period;
    cpu.quota = it.cpu_quota;
    cpu.burst = it.cpu_burst;
    cpu.realtime_period = it.cpu_rt_period;
    cpu.realtime_runtime = it.cpu_rt_runtime;
    cpu.cpus = it.cpuset_cpus.clone().unwrap_or_default();
    cpu.mems = it.cpuset_mems.clone().unwrap_or_default();
    cpu.idle = it.cpu_idle;
    let bytes = |flag: &str, text: &Option<String>| text.as_deref().map(|text| bytes(flag, text)).transpose();
    resources.memory = Some(Memory {
        limit: bytes("memory", &it.memory)?,
        reservation: bytes("memory-reservation", &it.memory_reservation)?,
        swap: bytes("memory-swap", &it.memory_swap)?,
        kernel: bytes("kernel-memory", &it.kernel_memory)?,
        kernel_tcp: bytes("kernel-memory-tcp", &it.kernel_memory_tcp)?,
        ..Memory::default()
    });
    resources.pids = it.pids_limit.map(|limit| Pids { limit });
    resources.block_io = it.blkio_weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() });
    Ok(resources)
}

/// Parses a number of bytes, with k, m, g or t for powers of 1024.
fn bytes(flag: &str, text: &str) -> Result<i64, RunError> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match digits.strip_suffix(['k', 'm', 'g', 't']) {
        Some(rest) => {
            (rest, [('k', 10), ('m', 20), ('g', 30), ('t', 40)].into_iter().find(|it| digits.ends_with(it.0)))
        }
        None => (digits, None),
    };
    let number: Option<i64> = digits.parse().ok();
    let value = number.and_then(|it| it.checked_mul(1 << shift.map_or(0, |it| it.1)));
    value.ok_or_else(|| RunError {
        text: format!("failed to read --{flag}: `{text}` is not a number of bytes"),
        code: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_and_without_units() {
        for (text, expected) in
            [("1", 1), ("-1", -1), ("2k", 2048), ("3M", 3 << 20), ("1GiB", 1 << 30), ("1tb", 1 << 40)]
        {
            assert_eq!(bytes("memory", text).ok(), Some(expected), "{text}");
        }
        for text in ["", "k", "1x", "99999999999t"] {
            assert!(bytes("memory", text).is_err(), "{text}");
        }
    }
}
