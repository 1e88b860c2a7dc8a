//! A set of numbers that is kept as runs without a gap, so that the next number that is not in the set is found in
//! logarithmic time, however long the runs are. Addresses, subnets and network identifiers are found by it.

use std::net::{IpAddr, Ipv6Addr};

use imbl::OrdMap;
use ipnet::IpNet;

/// A set of numbers. Clones are cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(
    /// The last number of each run by its first. No run begins right behind another.
    OrdMap<u128, u128>,
);

/// Returns the number of an address. Those of IPv4 and of IPv6 differ.
pub fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Returns the address with this number.
pub fn address_of(number: u128) -> IpAddr {
    let address = Ipv6Addr::from_bits(number);
    address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
}

/// Returns the numbers of the first and the last address of a prefix.
pub fn numbers_of(prefix: &IpNet) -> (u128, u128) {
    (number_of(prefix.network()), number_of(prefix.broadcast()))
}

impl Runs {
    /// Returns the run that has this number, or else the next one before it.
    fn at_or_before(&self, number: u128) -> Option<(u128, u128)> {
        self.0.get_prev(&number).map(|(first, last)| (*first, *last))
    }

    /// Adds the numbers from `first` to `last`.
    pub fn insert(&mut self, first: u128, last: u128) {
        let (mut first, mut last) = (first, last);
        if let Some((begin, end)) = self.at_or_before(first)
            && end >= first.saturating_sub(1)
        {
            (first, last) = (begin, last.max(end));
        }
        while let Some((begin, end)) = self.at_or_before(last.saturating_add(1))
            && begin >= first
        {
            last = last.max(end);
            self.0.remove(&begin);
        }
        self.0.insert(first, last);
    }

    /// Removes the numbers from `first` to `last`.
    pub fn remove(&mut self, first: u128, last: u128) {
        while let Some((begin, end)) = self.at_or_before(last)
            && end >= first
        {
            self.0.remove(&begin);
            if end > last {
                self.0.insert(last + 1, end);
            }
            if begin < first {
                self.0.insert(begin, first - 1);
            }
        }
    }

    /// Returns the lowest number from `first` to `last` that is not in the set.
    pub fn first_free(&self, first: u128, last: u128) -> Option<u128> {
        let free = match self.at_or_before(first) {
            Some((_, end)) if end >= first => end.checked_add(1)?,
            _ => first,
        };
        (free <= last).then_some(free)
    }

    /// Returns the last number of a run that has one from `first` to `last`; `None` if the set has none of them.
    pub fn last_met(&self, first: u128, last: u128) -> Option<u128> {
        if first > last {
            return None;
        }
        self.at_or_before(last).filter(|(_, end)| *end >= first).map(|(_, end)| end)
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn runs_say_what_a_set_says_after_any_changes() {
        let mut rng = StdRng::seed_from_u64(1);
        let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
        for step in 0..5_000 {
            let first = rng.random_range(0..60u128);
            let last = first + rng.random_range(0..4);
            if rng.random_bool(0.5) {
                runs.insert(first, last);
                set.extend(first..=last);
            } else {
                runs.remove(first, last);
                set.retain(|number| !(first..=last).contains(number));
            }
            let (from, to) = (rng.random_range(0..70), rng.random_range(0..70));
            let free = (from..=to).find(|number| !set.contains(number));
            assert_eq!(runs.first_free(from, to), free, "after {step} steps, {from} to {to}");
            assert_eq!(runs.last_met(from, to).is_some(), from <= to && set.range(from..=to).next().is_some());
            let gaps = set.iter().filter(|number| !set.contains(&(*number + 1))).count();
            assert_eq!(runs.0.len(), gaps, "a run is never in two pieces");
        }
    }

    #[test]
    fn the_last_number_of_all_can_be_in_the_set() {
        let mut runs = Runs::default();
        runs.insert(u128::MAX - 1, u128::MAX);
        assert_eq!(runs.first_free(u128::MAX, u128::MAX), None);
        assert_eq!(runs.last_met(0, u128::MAX), Some(u128::MAX));
        runs.remove(u128::MAX, u128::MAX);
        assert_eq!(runs.first_free(u128::MAX - 1, u128::MAX), Some(u128::MAX));
    }

    #[test]
    fn addresses_have_numbers_and_the_families_do_not_meet() {
        for text in ["10.0.0.1", "255.255.255.255", "fd00::1", "::"] {
            let address = text.parse().expect("an address");
            assert_eq!(address_of(number_of(address)), address);
        }
        let (first, last) = numbers_of(&"10.0.1.0/24".parse().expect("a prefix"));
        assert_eq!(last - first, 255);
    }
}
