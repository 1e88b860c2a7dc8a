//! Encrypted overlays between machines, that is to say namespaces, which are connected by a cable. They need a kernel with
//! WireGuard, which tests/guest/run.sh boots: elsewhere these tests are ignored.

mod lab;

use flota_network::{SecretKey, Sender};

use lab::{A, B, Lab, PLAIN};

#[test]
#[ignore = "needs WireGuard (tests/guest/run.sh)"]
fn packets_cross_encrypted_and_have_the_size_that_the_path_allows() {
    let lab = Lab::new();
    let wire = lab.listen_on_the_wire();
    assert!(lab.crosses(A, B) && lab.crosses(B, A));
    // Ethernet's 1500, less WireGuard's 60, less VXLAN's 70 over IPv6.
    assert_eq!(lab.mtus(), [1370, 1370]);
    assert!(lab.crosses_with(A, B, 1370 - 28), "the largest packet passes in one piece");
    let frames = wire.seen();
    // UDP over IPv4 to the port of a key.
    let is_encrypted =
        |frame: &&Vec<u8>| frame.get(23) == Some(&17) && frame.get(36..38) == Some(&51_820u16.to_be_bytes());
    assert!(frames.iter().filter(is_encrypted).count() >= 3, "the wire is heard: {} frames", frames.len());
    let is_plain = |frame: &Vec<u8>| frame.windows(PLAIN.len()).any(|part| part == PLAIN);
    assert!(!frames.iter().any(is_plain), "the text of the packets is on the wire");
}

#[test]
#[ignore = "needs WireGuard (tests/guest/run.sh)"]
fn without_its_device_nothing_leaves_in_clear_and_an_audit_makes_it_again() {
    let mut lab = Lab::new();
    assert!(lab.crosses(A, B));
    lab.remove_device(A);
    let wire = lab.listen_on_the_wire();
    assert!(lab.is_lost(A, B));
    assert!(wire.seen().iter().all(|frame| !frame.windows(PLAIN.len()).any(|part| part == PLAIN)));
    let audit = lab.tunnels[A].audit();
    assert!(audit.failed.is_empty() && !audit.mended.is_empty(), "{audit:?}");
    assert!(lab.crosses(A, B));
    let audit = lab.tunnels[A].audit();
    assert!(audit.failed.is_empty() && audit.mended.is_empty(), "nothing is left to mend: {audit:?}");
}

#[test]
#[ignore = "needs WireGuard (tests/guest/run.sh)"]
fn a_key_takes_the_place_of_another_and_no_packet_is_lost() {
    let mut lab = Lab::new();
    assert!(lab.crosses(A, B));
    let traffic = lab.traffic(A, B);
    traffic.wait_for(50);
    let new = lab.key(51_821);
    // It receives for the new key before anyone knows it, and sends with it when everyone does.
    let old = lab.keys[A].clone();
    lab.tunnels[A].set_keys(vec![old.clone(), new.clone()]).expect("two keys");
    lab.learn(B, A, &[&old, &new]);
    traffic.wait_for(50);
    lab.tunnels[A].set_keys(vec![new.clone()]).expect("the new key");
    traffic.wait_for(50);
    lab.learn(B, A, &[&new]);
    lab.keys[A] = new;
    traffic.wait_for(50);
    for _ in 0..2 {
        assert!(lab.tunnels[A].audit().failed.is_empty());
    }
    traffic.wait_for(50);
    assert_eq!(lab.devices(A), ["wg51821"], "the device of the former key is gone");
    traffic.assert_none_lost();
}

#[test]
#[ignore = "needs WireGuard (tests/guest/run.sh)"]
fn a_frame_that_is_not_of_the_machine_whose_key_it_comes_with_is_dropped() {
    let mut lab = Lab::new();
    assert!(lab.crosses(B, A));
    let sender = |lab: &Lab| Sender { machine: lab.keys[B].public.address().into(), mac: lab.mac(B) };
    let machine = sender(&lab);
    lab.admit(A, machine, false);
    assert!(lab.is_lost(B, A), "it claims a MAC address that its machine does not have");
    // An endpoint of another machine with this MAC address does not let the frame in either.
    let other = Sender { machine: lab.key(51_820).public.address().into(), ..machine };
    lab.admit(A, other, true);
    assert!(lab.is_lost(B, A));
    lab.admit(A, machine, true);
    assert!(lab.crosses(B, A));
    // Nor is anyone let in whose key is not known.
    lab.forget(A, B);
    assert!(lab.is_lost(B, A));
}

#[test]
#[ignore = "needs WireGuard (tests/guest/run.sh)"]
fn tunnels_of_an_earlier_process_are_taken_over_without_a_change() {
    let mut lab = Lab::new();
    assert!(lab.crosses(A, B));
    let traffic = lab.traffic(A, B);
    traffic.wait_for(20);
    lab.restart(A);
    traffic.wait_for(20);
    traffic.assert_none_lost();
    let audit = lab.tunnels[A].audit();
    assert!(audit.failed.is_empty() && audit.mended.is_empty(), "{audit:?}");
}

#[test]
#[ignore = "needs WireGuard (tests/guest/run.sh)"]
fn a_public_key_is_computed_by_the_kernel() {
    let secret = SecretKey::new([9; 32]);
    let public = secret.public().expect("tests run as root").expect("the kernel has WireGuard");
    // X25519 of this key and the base point 9 (RFC 7748, 5).
    let text: String = public.0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(text, "57db4b359f23ae5e146e4e2512056704722506348c150c14753d0c933d04d421");
}
