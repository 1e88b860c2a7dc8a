//! Measures what a change of one virtual address costs among many. Needs root, and as its argument the folder of a cgroup2,
//! in which it makes a group and removes it again.

#![expect(clippy::print_stdout, reason = "it prints figures")]

use std::error::Error;
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant};

use flota_network::{Balancer, Namespace, NamespaceCookie, NetworkKey, Pool, VirtualAddress};

const CHANGES: u32 = 1_000;

type Failure = Box<dyn Error + Send + Sync>;

fn network() -> NetworkKey {
    NetworkKey(NonZeroU64::MIN)
}

fn place(number: u32) -> VirtualAddress {
    VirtualAddress { network: network(), address: Ipv4Addr::from_bits(0x0aff_0000 + number).into() }
}

fn pool(number: u32, backends: u32) -> Pool {
    let address = |backend| Ipv4Addr::from_bits(0x0a00_0000 + number * 1_000 + backend).into();
    Pool { backends: (0..backends).map(address).collect(), affinity: false }
}

/// Adds and removes one backend of one virtual address, many times, and prints the median.
fn change(balancer: &mut Balancer, backends: u32, now: &mut Instant) -> Result<(), Failure> {
    let [fewer, more] = [pool(0, backends), pool(0, backends + 1)];
    let mut took = Vec::new();
    for number in 0..CHANGES {
        // This clock runs fast, so the cost includes the removal of what was replaced before.
        *now += Duration::from_secs(2);
        let begun = Instant::now();
        balancer.set(place(0), if number % 2 == 0 { &more } else { &fewer }, *now)?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let [median, worst] = [took.len() / 2, took.len() * 99 / 100].map(|at| took[at].as_secs_f64() * 1e6);
    println!("    {backends:5} backends: median {median:.1} us, 99th percentile {worst:.1} us");
    Ok(())
}

fn changes(group: &Path) -> Result<(), Failure> {
    for (virtuals, members) in [(1, 1), (1_000, 1), (1_000, 1_000)] {
        let mut now = Instant::now();
        let mut balancer = Balancer::bpf(group, now)?;
        for number in 0..virtuals {
            balancer.set(place(number), &pool(number, 10), now)?;
        }
        for number in 0..members {
            balancer.join(NamespaceCookie(1_000_000 + number), &Namespace::own(), &[network()])?;
        }
        println!("one change among {virtuals} virtual addresses of 10 backends, {members} namespaces");
        for backends in [1, 10, 100, 1_000] {
            change(&mut balancer, backends, &mut now)?;
        }
        Balancer::detach(group)?;
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let root = std::env::args().nth(1).ok_or("usage: balancer CGROUP2-FOLDER")?;
    let group = Path::new(&root).join(format!("flota-measure-{}", std::process::id()));
    std::fs::create_dir(&group)?;
    let measured = changes(&group);
    std::fs::remove_dir(&group)?;
    measured
}
