//! `events`: prints a container's resource usage and kernel events as lines of JSON, in runc's format.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use flota_runtime::cgroup::Stats;
use flota_runtime::oci::Status;
use flota_runtime::{Container, RunError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::arguments::Events;

pub(crate) fn events(root: &Path, it: &Events) -> Result<i32, RunError> {
    let container = Container::load(root, &it.id)?;
    let refuse = |text: String| RunError { text, code: None };
    let interval = humantime::parse_duration(&it.interval).ok().filter(|it| !it.is_zero());
    let interval = interval
        .ok_or_else(|| refuse(format!("failed to read --interval: `{}` is not a time above zero", it.interval)))?;
    if container.status() == Status::Stopped {
        return Err(refuse(format!("failed to watch the container `{}`: container not running", it.id)));
    }
    if it.stats {
        return print_stats(&container).map(|()| 0);
    }
    watch(&container, interval).map(|()| 0)
}

/// One line, with the fields in runc's order, because some readers look at its beginning.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

fn print(event: &Event<'_>) {
    println!("{}", serde_json::to_string(event).unwrap_or_default());
}

fn print_stats(container: &Container) -> Result<(), RunError> {
    let data = Some(container.groups.stats()?);
    print(&Event { kind: "stats", id: &container.id, data });
    Ok(())
}

fn watch(container: &Container, interval: Duration) -> Result<(), RunError> {
    let process = container.open_process()?;
    let mut memory = container.groups.watch_out_of_memory().ok();
    let mut next = Instant::now() + interval;
    loop {
        let mut polled = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        polled.extend(memory.as_ref().map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let ready = poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let fired: Vec<bool> = polled.iter().map(|it| it.any() == Some(true)).collect();
        drop(polled);
        if ready.is_err_and(|error| error != nix::Error::EINTR) {
            return Err(RunError { text: "failed to wait for events".into(), code: None });
        }
        if fired.get(1) == Some(&true)
            && memory.as_mut().is_some_and(|it| matches!(it.read(), flota_runtime::cgroup::OomEvent::OutOfMemory))
        {
            print(&Event { kind: "oom", id: &container.id, data: None });
        }
        if fired[0] {
            return Ok(());
        }
        if Instant::now() >= next {
            print_stats(container)?;
            next = Instant::now() + interval;
        }
    }
}
