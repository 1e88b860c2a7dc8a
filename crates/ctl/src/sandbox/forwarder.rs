//! The program in a bad cable: a hidden entry of `ctl` that passes frames between two TAP devices, each through a
//! [`Line`] for its direction. It ends by SIGKILL, and its devices go with it.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use flota_network::{Namespace, open_tap};
use flota_runtime::cgroup::Groups;
use flota_runtime::oci::Resources;

use super::hidden::{Hidden, close_other_descriptors, close_standard_streams};
use super::line::Line;
use super::settings::LinkSettings;

/// Most frames that are read from a device before those that have arrived are written.
const BATCH: usize = 64;
/// The longest frame: more than any MTU.
const LONGEST_FRAME: usize = 65_536 + 64;

/// The parameters of a forwarder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ForwarderSpec {
    /// File of the namespace that gets the devices.
    pub(crate) network: PathBuf,
    /// Names of the devices: the one at the node's side first.
    pub(crate) devices: [String; 2],
    pub(crate) settings: LinkSettings,
    /// Decides which frames are lost and how late each of the others is.
    pub(crate) seed: u64,
    /// The groups by which the process is found again.
    pub(crate) cgroups: Groups,
    /// Process id of the command that starts it.
    pub(crate) command: u32,
}

impl Hidden for ForwarderSpec {
    const ENTRY: &'static str = "__sandbox-forward";

    /// Makes the devices, and returns when a process of its own passes frames between them.
    fn run(mut self) -> anyhow::Result<u8> {
        close_other_descriptors();
        // Until its groups name it, it ends with the command, which may be killed at any time.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        ensure!(std::os::unix::process::parent_id() == self.command, "the command has ended");
        nix::unistd::setsid()?;
        self.cgroups.create(&Resources::default())?;
        self.cgroups.join(i32::try_from(std::process::id())?)?;
        let namespace = Namespace::at(&self.network);
        let [near, far] = &self.devices;
        let devices = [open_tap(&namespace, near)?, open_tap(&namespace, far)?];
        let lines = [self.seed, self.seed + 1].map(|seed| Line::new(self.settings, seed));
        flota_runtime::process::spawn(0, move || {
            // An error can't be reported from here on: the cable is broken, and `ctl sandbox ls` says so.
            i32::from(close_standard_streams().and_then(|()| Ok(forward(&devices, lines)?)).is_err())
        })
        .context("failed to start the forwarder")?;
        Ok(0)
    }
}

/// Passes frames until a device is gone. The first line leads from the first device to the second.
fn forward(devices: &[File; 2], mut lines: [Line; 2]) -> io::Result<()> {
    let begun = Instant::now();
    let mut buffer = vec![0; LONGEST_FRAME];
    loop {
        let next = lines.iter().filter_map(Line::next_arrival).min();
        wait(devices, next.map(|arrival| arrival.saturating_sub(begun.elapsed())))?;
        for (device, line) in devices.iter().zip(&mut lines) {
            take_frames(device, line, begun, &mut buffer)?;
        }
        for (device, line) in devices.iter().rev().zip(&mut lines) {
            while let Some(frame) = line.recv(begun.elapsed()) {
                // A device that is down or whose queue is full loses the frame, as any network card does.
                let _ = (&*device).write(&frame);
            }
        }
    }
}

/// Waits until a device has a frame, at most for the given time.
fn wait(devices: &[File; 2], time: Option<Duration>) -> io::Result<()> {
    let mut waiting = devices.each_ref().map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN));
    ppoll(&mut waiting, time.map(TimeSpec::from_duration), None)?;
    Ok(())
}

fn take_frames(mut device: &File, line: &mut Line, begun: Instant, buffer: &mut [u8]) -> io::Result<()> {
    for _ in 0..BATCH {
        match device.read(buffer) {
            Ok(length) => line.send(begun.elapsed(), &buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // As long as a device is down it has no frames (EIO).
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
