//! What a daemon can't do because it has several threads: makes the namespaces of a container with ids of its own, and tries
//! whether the machine can.

use std::ffi::OsString;
use std::path::Path;

use flota_runtime::{IdRange, RunError, owned_namespaces};

/// Carries out the request and returns the exit code.
pub(crate) fn run(words: &[OsString]) -> u8 {
    let result = match words {
        [verb, first, count, user, network] if verb == "make" => range(first, count)
            .ok_or_else(|| RunError { text: "namespaces: these are no ids".into(), code: None })
            .and_then(|ids| Ok(owned_namespaces::make(ids, Path::new(user), Path::new(network))?)),
        [verb, kind, folder] if verb == "try" => match owned_namespaces::try_in(Path::new(folder), kind == "overlay") {
            Err(error) if owned_namespaces::is_lack(&error) => {
                eprintln!("{error}");
                return owned_namespaces::CAN_NOT;
            }
            tried => tried.map_err(RunError::from),
        },
        _ => Err(RunError { text: "namespaces: only a daemon calls this".into(), code: None }),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", error.text);
            1
        }
    }
}

fn range(first: &OsString, count: &OsString) -> Option<IdRange> {
    Some(IdRange { first: first.to_str()?.parse().ok()?, count: count.to_str()?.parse().ok()? })
}
