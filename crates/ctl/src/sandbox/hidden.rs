//! Entries of `ctl` that only `ctl` itself calls: programs of one thread, which get their parameters as JSON.

use std::fs::File;
use std::process::Command;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The parameters of a hidden entry.
pub(crate) trait Hidden: Serialize + DeserializeOwned {
    /// The first argument of `ctl`, which names the entry.
    const ENTRY: &'static str;

    /// Runs the entry and returns the exit code.
    fn run(self) -> anyhow::Result<u8>;
}

/// Returns a command that calls this program with a hidden entry.
pub(crate) fn call<T: Hidden>(spec: &T) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(T::ENTRY).arg(serde_json::to_string(spec)?);
    Ok(command)
}

/// Runs a hidden entry with the parameters that [`call`] has encoded.
pub(crate) fn run<T: Hidden>(spec: &str) -> anyhow::Result<u8> {
    serde_json::from_str::<T>(spec)?.run()
}

/// Closes every descriptor but those of the standard streams. Called first by what stays: a descriptor that the caller of
/// `ctl` has left open, such as one that holds a lock, would else stay open for as long.
#[expect(unsafe_code, reason = "close_range has no safe wrapper")]
pub(crate) fn close_other_descriptors() {
    // SAFETY: the entry has not opened a descriptor yet, so this closes none that is owned.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0) };
}

/// Points standard input, output and error to /dev/null, so that their readers see their end.
pub(crate) fn close_standard_streams() -> anyhow::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
