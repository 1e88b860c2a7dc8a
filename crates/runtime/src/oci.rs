//! The documents of the OCI runtime specification as plain data: `config.json`, the state and the features.
//!
//! `crates/image` takes its types from the crate `oci-spec`, while these are our own, because `oci-spec` 0.10 is
//! unsuitable for a runtime:
//!
//! - A capability that it does not know makes the whole configuration unreadable, while the specification asks for a
//!   warning (config.md, "Linux Process"). The same goes for actions, operators, architectures and flags of seccomp,
//!   policies and flags of a scheduler, and modes of memory, which are closed enums. The types here keep such names as
//!   text, and `validate` or the code that applies them decides.
//! - It accepts `null` for a list or map that Go left empty only in optional fields.
//! - Its state has no `paused`, which runc, podman and containerd use.
//! - Its features document is made for reading; here it is only written, once.
//! - Every usable struct (namespaces, mounts, limits, hooks) is used together with an unusable one, and mixing both
//!   would require conversions between them.
//! - It adds 15 crates (regex, strum, getset, derive_builder, …) to a static program that is loaded for every
//!   container.

mod config;
mod linux;
mod process;
mod resources;
mod seccomp;
mod state;
mod template;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Deserializer};

pub use config::{Hook, Hooks, Mount, Root, Spec};
pub use linux::{
    Device, IdMapping, IntelRdt, Linux, MemoryPolicy, Namespace, NamespaceKind, NetDevice, Personality, TimeOffset,
};
pub use process::{Capabilities, ConsoleSize, CpuAffinity, IoPriority, Process, Rlimit, Scheduler, User};
pub use resources::{
    BlockIo, Cpu, DeviceRule, HugepageLimit, InterfacePriority, Memory, Network, Pids, Rdma, Resources, ThrottleDevice,
    WeightDevice,
};
pub use seccomp::{Argument, Seccomp, SyscallRule};
pub use state::{State, Status};
pub use template::{rootless, template};

use crate::error::{Act, StepError};

/// The implemented version of the specification.
pub const VERSION: &str = "1.2.1";

/// The largest configuration that is read, in bytes.
pub const CONFIG_BOUND: u64 = 8 << 20;

/// Deserializes `null`, which Go writes for an empty list, as an absent field.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Reads a JSON file that another program wrote.
///
/// # Errors
/// The file can't be read, is larger than [`CONFIG_BOUND`], or is not valid JSON of this type. The error names the
/// field.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, StepError> {
    let file = File::open(path).act(|| format!("open `{}`", path.display()))?;
    let size = file.metadata().map_or(0, |it| it.len());
    parse(file, size, &path.display().to_string())
}

/// Parses JSON that another program wrote from a reader, which errors call `name`.
///
/// # Errors
/// The same as for [`read_json`].
pub fn parse_json<T: for<'de> Deserialize<'de>>(from: impl Read, name: &str) -> Result<T, StepError> {
    parse(from, 0, name)
}

/// Parses JSON; `size` is the expected length.
fn parse<T: for<'de> Deserialize<'de>>(from: impl Read, size: u64, name: &str) -> Result<T, StepError> {
    // The reported size may be wrong, and the file may be a device or a pipe.
    let mut text = Vec::with_capacity(usize::try_from(size.min(CONFIG_BOUND)).unwrap_or(0) + 1);
    from.take(CONFIG_BOUND + 1).read_to_end(&mut text).act(|| format!("read `{name}`"))?;
    if text.len() as u64 > CONFIG_BOUND {
        return Err(StepError::refuse(format!("read `{name}`"), format!("it is larger than {CONFIG_BOUND} bytes")));
    }
    let refuse = |why: String| StepError::refuse(format!("read `{name}`"), why);
    // The first try does not track the path to a field, which costs as much as all the rest.
    if let Ok(value) = serde_json::from_slice(&text) {
        return Ok(value);
    }
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.into_inner());
        refuse(if path == "." { error.to_string() } else { format!("{path}: {error}") })
    })?;
    reader.end().map_err(|error| refuse(error.to_string()))?;
    Ok(value)
}
