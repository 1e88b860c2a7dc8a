"""Committed writes: Flota's beside those of an etcd of three nodes on the same disk, by the same client, with TLS between
client and server and between the members; and what one of Flota's writes waits for. Used by run.py."""
import os, shutil, statistics, subprocess, tempfile

SERVER = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
NAMES = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "extendedKeyUsage=serverAuth,clientAuth",
         "-addext", "basicConstraints=critical,CA:FALSE"]


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def measure(inside, program, kind, address, folder, parallel, seconds):
    """Runs the client; writes a second, and median and 99th percentile in ms. `inside` enters a network namespace."""
    words = [*inside, program, kind, address, folder, str(parallel), str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return [float(word) for word in done.stdout.split()]


class Etcd:
    """Three members on the loopback of a network namespace of their own, with their data on the same disk."""

    def __init__(self, program, until):
        self.program = program
        self.dir = tempfile.mkdtemp(prefix="flota-bench-", dir="/var/tmp")
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "900"])
        self.members = []
        until(lambda: os.readlink(f"/proc/{self.holder.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        self.inside = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        subprocess.run([*self.inside, "busybox", "ip", "link", "set", "lo", "up"], check=True)
        ca, cert, key = (f"{self.dir}/{name}.pem" for name in ("ca", "cert", "key"))
        openssl("req", "-x509", *SERVER, "-keyout", f"{self.dir}/ca-key.pem", "-out", ca, "-subj", "/CN=bench")
        openssl("req", "-x509", "-CA", ca, "-CAkey", f"{self.dir}/ca-key.pem", *SERVER, *NAMES, "-keyout", key,
                "-out", cert, "-subj", "/CN=localhost")
        tls = [f"--{peer}{flag}" for peer in ("", "peer-") for flag in
               (f"cert-file={cert}", f"key-file={key}", f"trusted-ca-file={ca}", "client-cert-auth")]
        peers = ",".join(f"m{n}=https://127.0.0.1:2{n}80" for n in (1, 2, 3))
        for n in (1, 2, 3):
            peer, client = f"https://127.0.0.1:2{n}80", f"https://127.0.0.1:2{n}79"
            self.members.append(subprocess.Popen(
                [*self.inside, "etcd", "--name", f"m{n}", "--data-dir", f"{self.dir}/{n}", "--initial-cluster", peers,
                 "--initial-cluster-state", "new", "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                 "--listen-client-urls", client, "--advertise-client-urls", client, *tls],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until(lambda: self.answers("127.0.0.1:2179"))
        # The one that leads answers soonest.
        self.leader = max((f"127.0.0.1:2{n}79" for n in (1, 2, 3)), key=lambda it: self.run(1, 1, it)[0])

    def answers(self, address):
        try:
            return self.run(1, 1, address)[0] > 0
        except RuntimeError:
            return False

    def run(self, parallel, seconds, address=None):
        return measure(self.inside, self.program, "etcd", address or self.leader, self.dir, parallel, seconds)

    def end(self):
        for process in [*self.members, self.holder]:
            process.kill()
            process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Flota:
    """The managers of a sandbox; `system_info` and `ping` ask one of them."""

    def __init__(self, program, state, nodes, pids, system_info, ping):
        self.program, self.system_info, self.ping = program, system_info, ping
        self.managers = [node["name"] for node in nodes if node["role"] == "manager"]
        leader = next(node for node in nodes if node["leader"])
        self.leader, self.address = leader["name"], leader["address"]
        self.followers = [node["address"].rsplit(":", 1)[0] for node in nodes
                          if node["role"] == "manager" and not node["leader"]]
        self.inside = ["nsenter", f"--net=/proc/{pids[self.leader]}/ns/net"]
        self.identity = f"{state}/{self.leader}/data/identity"

    def run(self, parallel, seconds):
        """Services without a task, each an acknowledged entry, by the leader's own certificate."""
        with tempfile.TemporaryDirectory(prefix="flota-bench-") as folder:
            for name, kind, source in (("ca", "x509", "ca.crt"), ("cert", "x509", "node.crt"), ("key", "pkey", "node.key")):
                openssl(kind, "-inform", "DER", "-in", f"{self.identity}/{source}", "-out", f"{folder}/{name}.pem")
            return measure(self.inside, self.program, "flota", self.address, folder, parallel, seconds)

    def run_with_waits(self, parallel, seconds):
        """Also what a write waits for, in ms: {what: value}; empty where the managers keep no statistics."""
        before = self.statistics()
        result = self.run(parallel, seconds)
        after = self.statistics()
        if not all(before.values()) or not all(after.values()):
            return result, {}
        syncs = {name: after[name]["syncs"] - before[name]["syncs"] for name in self.managers}
        mean = {name: (after[name]["syncTotalUs"] - before[name]["syncTotalUs"]) / 1e3 / max(1, syncs[name])
                for name in self.managers}
        entries = after[self.leader]["entriesSynced"] - before[self.leader]["entriesSynced"]
        leader = mean[self.leader]
        # The faster follower makes the majority.
        follower = min(mean[name] for name in self.managers if name != self.leader)
        network = statistics.mean(self.ping(self.leader, address) for address in self.followers)
        # Leader and follower sync at the same time: the longer way is waited for.
        queueing = result[1] - max(leader, network + follower)
        return result, {"leader sync": leader, "follower sync": follower, "network, there and back": network,
                        "queueing and work": queueing, "entries in a sync": entries / max(1, syncs[self.leader])}

    def statistics(self):
        return {name: self.system_info(name).get("log") for name in self.managers}
