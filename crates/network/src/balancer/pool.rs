//! The backends of one virtual address, and their order.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// The backends of a virtual address, and how they are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// The addresses that share the connections. They are of the virtual address's IP version.
    pub backends: BTreeSet<IpAddr>,
    /// Whether all connections of a namespace go to the same backend. When a backend comes or goes, about one in as many
    /// namespaces as there are backends gets another one.
    pub affinity: bool,
}

/// Puts backends in an order that differs as little as possible from the last one: those that stay keep their places,
/// and the last ones fill the places of those that have gone. New ones are appended. Clients that depend on a place
/// then keep their backend.
pub(super) fn arrange(last: &[IpAddr], wanted: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let mut order = last.to_vec();
    let mut at = 0;
    while let Some(backend) = order.get(at) {
        if wanted.contains(backend) {
            at += 1;
        } else {
            order.swap_remove(at);
        }
    }
    let kept: BTreeSet<IpAddr> = order.iter().copied().collect();
    order.extend(wanted.difference(&kept));
    order
}

/// Returns a number below `count` that follows from `key`, and that changes for few keys when the count does: the "jump
/// hash" that `hooks.rs` has as a program.
pub(super) fn jump_hash(mut key: u64, count: usize) -> usize {
    let (mut result, mut candidate) = (0, 0);
    while candidate < count as u64 {
        result = candidate;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        candidate = ((candidate + 1) << 31) / ((key >> 33) + 1);
    }
    usize::try_from(result).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_that_stay_keep_their_places() {
        let addresses = |hosts: &[u8]| hosts.iter().map(|host| IpAddr::from([10, 0, 0, *host])).collect::<Vec<_>>();
        for (last, wanted, order) in [
            (&[][..], &[2, 1][..], &[1, 2][..]),
            (&[3, 1, 2], &[1, 2, 3], &[3, 1, 2]),
            (&[3, 1, 2], &[1, 2, 3, 0], &[3, 1, 2, 0]),
            (&[3, 1, 2, 4], &[1, 2, 4], &[4, 1, 2]),
            (&[3, 1, 2, 4], &[1, 2], &[2, 1]),
            (&[3, 1], &[5, 6], &[5, 6]),
            (&[3, 1], &[], &[]),
        ] {
            let wanted = addresses(wanted).into_iter().collect();
            assert_eq!(arrange(&addresses(last), &wanted), addresses(order), "{last:?} -> {wanted:?}");
        }
    }
}
