//! Which managers are a majority.

use flota_tests::sim::availability::subsets;
use flota_tests::sim::host::Host;

#[test]
fn every_majority_is_looked_at() {
    let hosts = [1, 2, 3].map(Host);
    let found = subsets(&hosts, 2);
    assert_eq!(found, [[1, 2], [1, 3], [2, 3]].map(|set| set.map(Host).to_vec()));
    assert_eq!(subsets(&hosts[..1], 2), Vec::<Vec<Host>>::new());
}
