//! Encrypted networks between the nodes of a real cluster. They need a kernel with WireGuard, which tests/guest/run.sh
//! boots: elsewhere these tests are ignored.
#![allow(unsafe_code, reason = "the standard library has neither packet sockets nor namespaces")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use flota_tests::Cluster;
use serde_json::Value;

/// What the tasks send to each other, in clear.
const PLAIN: &[u8] = b"SECRET=everybody-may-read-this";

/// Returns the public keys that a node reports, oldest first.
fn keys(cluster: &Cluster, node: &str) -> Vec<String> {
    let printed: Value = serde_json::from_str(&cluster.ok(&format!("node inspect {node}"))).expect("JSON");
    let keys = printed[0]["description"]["tunnelKeys"].as_array().cloned().unwrap_or_default();
    keys.iter().filter_map(|key| key["public"].as_str().map(ToOwned::to_owned)).collect()
}

/// All frames on the cables of a sandbox.
struct Wire(File);

impl Wire {
    fn of(cluster: &Cluster) -> Self {
        let network = PathBuf::from("/run/flota-sandbox").join(cluster.name()).join("network");
        let open = move || {
            let namespace = File::open(network)?;
            // SAFETY: takes no pointer. The thread ends before anything else runs on it.
            if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
                return Err(io::Error::last_os_error());
            }
            // All protocols, in network byte order (packet(7)).
            let all = i32::from(u16::try_from(libc::ETH_P_ALL).expect("a small number").to_be());
            // SAFETY: takes no pointer.
            let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, all) };
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just returned it, and nobody else has it.
            Ok(File::from(unsafe { OwnedFd::from_raw_fd(socket) }))
        };
        Self(std::thread::spawn(open).join().expect("no panic").expect("a packet socket"))
    }

    /// Returns the frames that were heard since the last call, as far as the kernel has kept them.
    fn heard(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 4096];
        while let Ok(length) = self.0.read(&mut buffer) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }
}

fn is_plain(frame: &[u8]) -> bool {
    frame.windows(PLAIN.len()).any(|part| part == PLAIN)
}

/// Whether the frame is WireGuard's: UDP over IPv4 to a port of a key.
fn is_encrypted(frame: &[u8]) -> bool {
    let port = frame.get(36..38).map(|it| u16::from_be_bytes([it[0], it[1]]));
    frame.get(12..14) == Some(&[8, 0])
        && frame.get(23) == Some(&17)
        && port.is_some_and(|it| (51_820..=51_821).contains(&it))
}

#[test]
#[ignore = "needs WireGuard (tests/guest/run.sh)"]
fn requests_cross_an_encrypted_network_while_its_keys_change_and_none_is_readable() {
    let cluster = Cluster::up_with(1, 2, "tunnel-key-life = \"30s\"\n");
    cluster.wait("every node has a key", |it| ["m1", "w1", "w2"].iter().all(|node| !keys(it, node).is_empty()));
    cluster.ok("network create front --opt encrypted");
    let service = "service create --network front --constraint node.hostname==";
    cluster.ok(&format!("{service}w2 --name web --env SECRET=everybody-may-read-this whoami"));
    cluster.ok(&format!("{service}w1 --name reader whoami"));
    let get = |it: &Cluster| it.ctl("exec reader -- /whoami get http://web/");
    cluster.wait("the service answers", |it| get(it).code == 0);
    let before = [keys(&cluster, "w1"), keys(&cluster, "w2")];
    let mut wire = Wire::of(&cluster);
    let answer = get(&cluster).stdout;
    assert!(answer.contains("SECRET=everybody-may-read-this"), "{answer}");
    let frames = wire.heard();
    assert!(frames.iter().any(|frame| is_encrypted(frame)), "{} frames, none of them WireGuard's", frames.len());
    assert!(!frames.iter().any(|frame| is_plain(frame)), "what tasks send is readable between the nodes");
    // Each node makes another key, the other learns it, and the first is dropped. Every request meanwhile is answered.
    cluster.wait("both nodes have dropped their first keys", |it| {
        let answer = get(it);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let now = [keys(it, "w1"), keys(it, "w2")];
        now.iter().zip(&before).all(|(now, before)| !now.is_empty() && !now.contains(&before[0]))
    });
    assert_eq!(get(&cluster).code, 0);
    assert!(!wire.heard().iter().any(|frame| is_plain(frame)), "a new key makes nothing readable");
    cluster.ok("service rm web reader");
    cluster.ok("network rm front");
    for node in ["w1", "w2"] {
        cluster.wait(&format!("{node} has no tunnels any more"), |it| {
            it.sandbox(&format!("exec {node} -- busybox ls /run/flota/namespaces/tunnels")).code != 0
        });
    }
}
