//! The destinations of this machine's routes, as the leader has to know them: no network gets a subnet that meets one. A
//! router may have thousands, so they are merged, and bounded.

use ipnet::IpNet;

use flota_network::Namespace;

/// Largest number of prefixes of each IP version.
const BOUND: usize = 128;

/// Returns the prefixes that this machine has routes to.
pub(crate) fn routes() -> Vec<IpNet> {
    let found = Namespace::own().destinations().unwrap_or_else(|error| {
        tracing::warn!(%error, "the routes of this machine are not known");
        Vec::new()
    });
    let count = found.len();
    let (version_4, version_6): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| it.addr().is_ipv4());
    let all = [merged(&version_4), merged(&version_6)];
    if let Some(shortest) = all.iter().filter_map(|it| it.shortened_to).min() {
        tracing::warn!(
            routes = count,
            prefix.length = shortest,
            "prefixes of this machine's many routes are reported shortened"
        );
    }
    all.into_iter().flat_map(|it| it.prefixes).collect()
}

/// Prefixes that cover all destinations.
#[derive(Debug, PartialEq)]
struct Merged {
    prefixes: Vec<IpNet>,
    /// The longest length that is left, if longer prefixes were too many.
    shortened_to: Option<u8>,
}

/// Merges prefixes of one IP version: adjacent ones, and those within others. As long as there are too many, the longest
/// are shortened by a bit. Then they may also cover what no route leads to, but they never leave out what one does.
fn merged(found: &[IpNet]) -> Merged {
    let mut merged = Merged { prefixes: IpNet::aggregate(&found.to_vec()), shortened_to: None };
    let mut length = found.iter().map(IpNet::prefix_len).max().unwrap_or_default();
    while merged.prefixes.len() > BOUND {
        length -= 1;
        let shorten = |it: &IpNet| IpNet::new(it.addr(), it.prefix_len().min(length)).map_or(*it, |it| it.trunc());
        merged.prefixes = IpNet::aggregate(&merged.prefixes.iter().map(shorten).collect());
        merged.shortened_to = Some(length);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(prefixes: &[&str]) -> Vec<String> {
        let parsed: Vec<IpNet> = prefixes.iter().map(|it| it.parse().expect("a prefix")).collect();
        merged(&parsed).prefixes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn adjacent_prefixes_and_those_within_others_are_one() {
        let table: [(&[&str], &[&str]); 4] = [
            (&[], &[]),
            (&["10.0.0.0/24", "10.0.1.0/24", "10.0.3.0/24"], &["10.0.0.0/23", "10.0.3.0/24"]),
            (&["172.16.0.0/12", "172.17.5.0/24", "172.31.0.1/32"], &["172.16.0.0/12"]),
            (&["fd00::/9", "fd80::/9", "2001:db8::/64"], &["2001:db8::/64", "fd00::/8"]),
        ];
        for (found, expected) in table {
            assert_eq!(merge(found), expected, "{found:?}");
        }
    }

    #[test]
    fn very_many_prefixes_are_shortened_and_none_is_left_out() {
        // Every second /24 from 10.0.0.0 on, which can't be merged.
        let version_4 = (0..5_000).map(|it: u32| format!("10.{}.{}.0/24", it * 2 / 256, it * 2 % 256));
        let version_6 = (0..5_000).map(|it: u32| format!("2001:db8:{it:x}:1::/64"));
        for found in [version_4.collect::<Vec<_>>(), version_6.collect()] {
            let found: Vec<IpNet> = found.iter().map(|it| it.parse().expect("a prefix")).collect();
            let merged = merged(&found);
            assert!(merged.prefixes.len() <= BOUND && merged.shortened_to.is_some(), "{merged:?}");
            let covers = |prefix: &IpNet| merged.prefixes.iter().any(|it| it.contains(prefix));
            assert!(found.iter().all(covers));
            assert!(!covers(&"11.0.0.0/24".parse().expect("a prefix")), "the rest of the world stays free");
        }
    }
}
