//! How a node finds its cluster again after the addresses of all managers have changed, so that no node can tell another
//! where it is now.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;

use super::Node;
use crate::join::Unreachable;

/// How long it may take to find the leader at addresses that a user has named: an election, and some tries of the worker.
const RECONNECT_WAIT: Duration = Duration::from_secs(15);

impl Node {
    /// `ctl swarm reconnect`. A manager returns the addresses at which it has found others, which elect a leader when a
    /// majority has found each other; a worker returns when it has found the leader.
    pub(crate) async fn reconnect(&self, managers: &[String]) -> anyhow::Result<Vec<String>> {
        let (worker, manager, own) = match self.membership.lock().await.as_ref() {
            Some(it) => (Arc::clone(&it.worker), it.manager().cloned(), it.address.clone()),
            None => return Err(self.absence("this node belongs to no cluster; use `ctl swarm join`")),
        };
        if let Some(wrong) = managers.iter().find(|it| !is_address(it)) {
            bail!("`{wrong}` is not HOST:PORT");
        }
        let places = managers.join(", ");
        if let Some(manager) = manager {
            let found = manager.raft().find_members(managers).await;
            if found.is_empty() {
                let text = format!("no other manager of this cluster answers at {places}");
                return Err(Unreachable(text).into());
            }
            // It may become the leader.
            worker.also_try(&[found.clone(), vec![own]].concat());
            return Ok(found);
        }
        worker.also_try(managers);
        let has_leader = async {
            while worker.lost().is_some() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(RECONNECT_WAIT, has_leader).await;
        found.map(|()| Vec::new()).map_err(|_| {
            let text = format!(
                "no leader was found within {RECONNECT_WAIT:?}: do managers of this cluster run at {places}, and have they \
                 found each other?"
            );
            Unreachable(text).into()
        })
    }
}

/// Whether a text is a host and a port, with which a connection can be tried.
fn is_address(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::is_address;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for good in ["198.18.0.1:2377", "[fd00::1]:2377", "m1.example:1"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", ":2377", "m1", "m1:", "m1:0", "m1:65536", "m 1:2377", "m1\nm2:2377"] {
            assert!(!is_address(bad), "{bad:?}");
        }
    }
}
