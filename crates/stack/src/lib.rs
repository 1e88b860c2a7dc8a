//! Stack files: from the YAML of the Compose specification to service specs. Called by `ctl stack deploy`.
//!
//! `tree.rs` parses the YAML, `interpolate.rs` puts in the values of variables, `fields.rs` reads values out of the
//! tree, and `convert.rs` makes specs of them. `parse.rs` reads sizes and durations, `publish.rs` ports and networks,
//! `mount.rs` mounts, `setting.rs` settings of tasks, `words.rs` command lines, and `env_file.rs` files of variables. A
//! key or value that is not understood is an error that names its line and key; it is never ignored.

mod convert;
pub mod env_file;
mod faults;
mod fields;
mod interpolate;
mod load;
pub mod mount;
pub mod parse;
pub mod publish;
pub mod setting;
mod tree;
pub mod value;
pub mod words;

pub use load::{LoadError, load};

/// Sets an option of a network's driver by its name in Docker.
///
/// # Errors
/// There is no such option, or it can't have this value.
pub fn option(spec: &mut flota_api::model::NetworkSpec, name: &str, value: &str) -> Result<(), String> {
    match (name, value) {
        ("com.docker.network.driver.mtu", _) => {
            spec.mtu = Some(value.parse().map_err(|_| format!("`{value}` is not a number of bytes"))?);
        }
        ("parent", _) => spec.parent = Some(value.to_owned()),
        ("encrypted", "" | "true") => spec.encrypted = true,
        ("encrypted", "false") => spec.encrypted = false,
        ("encrypted", _) => return Err(format!("`{value}` is neither true nor false")),
        _ => {
            let known = "com.docker.network.driver.mtu, parent, encrypted";
            return Err(format!("`{name}` is not an option of a network: they are {known}"));
        }
    }
    Ok(())
}
