//! What a change costs in networks of different sizes.

use nix::time::{ClockId, clock_gettime};

use super::*;

const TASKS_OF_EACH: u32 = 10;
const CHANGES: usize = 50;

/// CPU time of this thread.
fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn endpoint_of(service: u32, number: u32, serving: bool) -> Endpoint {
    let address = u32::from(Ipv4Addr::new(10, 77, 0, 10)) + service * TASKS_OF_EACH + number;
    Endpoint {
        service: format!("s{service}").as_str().into(),
        name: format!("s{service}.{number}"),
        addresses: vec![Ipv4Addr::from(address).into()],
        vtep: Some(super::address(1).into()),
        ..endpoint(NETWORK, &format!("t{service}-{number}"), 0, serving)
    }
}

/// Returns one network of this many services, all of whose tasks are on the second node.
fn crowd(services: u32) -> NetworkUpdate {
    let mut update = view().to_update();
    update.networks.retain(|it| it.id == NETWORK.into());
    let subnet = &mut update.networks[0].subnets[0];
    (subnet.prefix, subnet.virtual_range) = ("10.77.0.0/16".parse().unwrap(), "10.77.192.0/18".parse().unwrap());
    update.nodes.clear();
    update.endpoints = (0..services)
        .flat_map(|service| (0..TASKS_OF_EACH).map(move |number| endpoint_of(service, number, true)))
        .collect();
    let model = update.services.remove(0);
    let service = |number: u32| NetworkService {
        service: format!("s{number}").as_str().into(),
        name: format!("s{number}"),
        aliases: Vec::new(),
        virtual_ips: vec![Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 192, 1)) + number).into()],
        ..model.clone()
    };
    update.services = (0..services).map(service).collect();
    update
}

/// Returns the CPU time that one endpoint's coming and going takes, the median of many.
fn one_change(services: u32) -> Duration {
    let mut pair = Pair::start();
    let mut view = View::default();
    view.apply(crowd(services));
    pair.program(0, &view);
    let mut took = Vec::new();
    for number in 0..CHANGES {
        let endpoints = vec![endpoint_of(0, 0, number % 2 == 1)];
        let begun = cpu();
        let mut todo = view.apply(NetworkUpdate { endpoints, ..NetworkUpdate::default() });
        pair.node(0).program(&view, &[], &mut todo).unwrap();
        took.push(cpu() - begun);
        assert_eq!(todo, Touched::default());
    }
    took.sort_unstable();
    took[CHANGES / 2]
}

#[test]
fn a_change_costs_the_same_among_ten_services_and_among_a_thousand() {
    let (few, many) = (one_change(10), one_change(1_000));
    eprintln!("one change among 10 services takes {few:?}, among 1,000 {many:?}");
    assert!(many < 3 * few, "{many:?} and {few:?}");
}
