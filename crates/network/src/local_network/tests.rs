//! Networks between real namespaces.

mod world;

use world::{World, assert_lost, assert_reached, passes};

/// The underlay's addresses of the two machines.
const VERSION_4: [&str; 2] = ["198.18.7.1/24", "198.18.7.2/24"];
const VERSION_6: [&str; 2] = ["fd0a::1/64", "fd0a::2/64"];

#[test]
fn hosts_on_two_machines_reach_each_other() {
    for underlay in [VERSION_4, VERSION_6] {
        let world = World::new(underlay, 1500);
        let (_networks, [a, b]) = world.two_hosts();
        for version_4 in [true, false] {
            assert_reached(&a, &b, version_4);
            assert_reached(&b, &a, version_4);
        }
    }
}
