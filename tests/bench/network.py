#!/usr/bin/env python3
"""Figures of networks: an overlay beside a VXLAN made by hand on the same cable, virtual IPs beside the task itself, published
ports beside the same hops made by hand, and how soon a change takes effect. Called by run.py; alone: network.py PROGRAMS.

Clients and servers of both sides are the same programs (iperf3, wrk, peer.c), started in the same way in the network
namespaces of tasks or of their counterparts, in turn, so that load of the machine falls on both. Everything lies in the
sandbox's namespaces and in a few of this program's own, which end with their processes."""
import atexit, contextlib, glob, json, os, re, signal, statistics, subprocess, sys, tempfile, time
from datetime import datetime

from sandbox import NAME, PROGRAMS, RESULTS, RUNS, ctl, daemons, down, leader, nodes, rows, all_ready, show, timed, until, up

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer.c")
# The longest that the holder of a namespace lives.
LIFE = 3600
SECONDS = 2
ROUND_TRIPS = 10000
CHANGES = 25
LOSSES = 3
HTTP = "81"
ECHO = "7"
CABLE = f"/run/flota-sandbox/{NAME}/network"
# What hand-made networks use in place of a cluster's pool.
BLOCK = "198.19.100"
BENCH_VXLAN = ("id", "77", "dstport", "4790")
# One task on each worker.
ON_BOTH = ("--network", "front", "--replicas", "2", "--constraint", "node.role==worker")
# Other programs of the machine wait for those that are measured.
PRIORITY = -15


class Namespace:
    """A network namespace, by a path to it; `group` is the cgroup2 that its programs join first, if any."""

    def __init__(self, path, group=None):
        self.path, self.group = path, group

    def words(self, *words):
        inside = ["nsenter", f"--net={self.path}", *words]
        # The program itself joins: a socket belongs to the group in which it was made.
        join = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
        return inside if self.group is None else ["sh", "-c", join, self.group, *inside]

    def run(self, *words, timeout=60):
        done = subprocess.run(self.words(*words), capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *words):
        return subprocess.Popen(self.words(*words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def ungrouped(self):
        return Namespace(self.path)

    def set(self, **values):
        for key, value in values.items():
            # A kernel may lack a key.
            with contextlib.suppress(SystemExit):
                self.run("sh", "-c", f"echo {value} >/proc/sys/net/{key.replace('__', '/')}")


class Own(Namespace):
    """A namespace of this program, which ends with its holder."""

    def __init__(self):
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", str(LIFE)])
        super().__init__(f"/proc/{self.holder.pid}/ns/net")
        until(lambda: os.readlink(self.path) != os.readlink("/proc/self/ns/net"))
        self.run("ip", "link", "set", "lo", "up")

    def end(self):
        self.holder.kill()
        self.holder.wait()


def join(port, bridge, at, own, address):
    """A cable from `own`, where it is eth0 with this address, to a bridge of the namespace `at`."""
    at.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(own.holder.pid))
    at.run("ip", "link", "set", port, "master", bridge, "up")
    own.run("ip", "address", "add", address, "dev", "eth0")
    own.run("ip", "link", "set", "eth0", "up")


class ByHand:
    """What an overlay of two nodes is when made by hand: on each a bridge, a VXLAN and a task in namespaces of their own,
    with a way from the node's namespace to the bridge. The first node's bridge is everybody's router."""

    def __init__(self, hosts, addresses):
        self.switches, self.tasks, self.hosts = [Own(), Own()], [Own(), Own()], hosts
        for number, (switch, task, host) in enumerate(zip(self.switches, self.tasks, hosts)):
            local, remote = addresses[number], addresses[1 - number]
            host.run("ip", "link", "add", "byhand", "type", "vxlan", *BENCH_VXLAN, "local", local, "remote", remote)
            host.run("ip", "link", "set", "byhand", "netns", str(switch.holder.pid))
            switch.set(bridge__bridge__nf__call__iptables=0)
            switch.run("ip", "link", "add", "br0", "type", "bridge")
            switch.run("ip", "link", "set", "byhand", "mtu", "1450", "master", "br0", "up")
            switch.run("ip", "link", "set", "br0", "mtu", "1450", "up")
            switch.run("ip", "address", "add", f"{BLOCK}.{number + 1}/24", "dev", "br0")
            switch.set(ipv4__ip_forward=1, ipv4__conf__all__send_redirects=0)
            join("task", "br0", switch, task, f"{BLOCK}.{number + 11}/24")
            task.run("ip", "link", "set", "eth0", "mtu", "1450")
            task.run("ip", "route", "add", "default", "via", f"{BLOCK}.1")
        first, host = self.switches[0], hosts[0]
        host.run("ip", "link", "add", "byhand", "type", "veth", "peer", "name", "uplink", "netns", str(first.holder.pid))
        host.run("ip", "address", "add", "198.19.101.1/30", "dev", "byhand")
        host.run("ip", "link", "set", "byhand", "up")
        host.run("ip", "route", "add", f"{BLOCK}.0/24", "via", "198.19.101.2")
        first.run("ip", "address", "add", "198.19.101.2/30", "dev", "uplink")
        first.run("ip", "link", "set", "uplink", "up")
        first.run("ip", "route", "add", "default", "via", "198.19.101.1")
        host.run("nft", f"table ip byhand {{ chain in {{ type nat hook prerouting priority -100; "
                        f"tcp dport 8099 dnat to {BLOCK}.12:{HTTP}; }}; }}")

    def end(self):
        self.hosts[0].run("nft", "delete", "table", "ip", "byhand")
        self.hosts[0].run("ip", "link", "delete", "byhand")
        for own in [*self.tasks, *self.switches]:
            own.end()


def host(name):
    return Namespace(f"/proc/{daemons()[name]}/ns/net")


def running(service):
    return rows("service", "ps", service, "--filter", "state=running", "--filter", "desiredState=running")


def tasks_of(service):
    """The namespaces of a service's tasks, by node and slot."""
    found = []
    for task in sorted(running(service), key=lambda it: (it["node"], it["slot"])):
        path = f"/proc/{daemons()[task['node']]}/root/run/flota/namespaces/tasks/{task['id']}"
        groups = f"/sys/fs/cgroup/**/flota-sandbox/{NAME}/{task['node']}/**/{task['id']}"
        found.append(Namespace(path, next(it for it in glob.glob(groups, recursive=True) if os.path.exists(f"{it}/cgroup.type"))))
    return found


def addresses_of(namespace, device="eth"):
    found = json.loads(namespace.run("ip", "-json", "-4", "address"))
    return [it["local"] for link in found if link["ifname"].startswith(device) for it in link["addr_info"]]


def create(name, *words, node=None, image="peer", command=("http", "80")):
    here = ["--constraint", f"node.hostname=={node}"] if node else []
    ctl("service", "create", "--name", name, *here, *words, image, *command)


@contextlib.contextmanager
def started(*programs):
    processes = [namespace.start(*words) for namespace, *words in programs]
    time.sleep(0.2)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wrk(client, address, *, kept):
    header = [] if kept else ["-H", "Connection: close"]
    out = client.run("wrk", "-t1", "-c32", f"-d{SECONDS}s", *header, f"http://{address}/")
    return float(re.search(r"Requests/sec:\s*([\d.]+)", out).group(1))


def iperf(client, address):
    out = json.loads(client.run("iperf3", "-c", address, "-t", str(SECONDS), "-J"))
    return out["end"]["sum_received"]["bits_per_second"] / 1e9


def pairs(measure, ours, theirs, count=RUNS):
    """Measures both in turn, and prints and returns the ratios."""
    figures = [(measure(*ours), measure(*theirs)) for _ in range(count)]
    print(f"    {statistics.median(it for it, _ in figures):.4g} beside {statistics.median(it for _, it in figures):.4g}", flush=True)
    return [us / them for us, them in figures]


class Bench:
    """A sandbox with a network `front`, and the namespaces beside it."""

    def __init__(self):
        up()
        self.dir = tempfile.mkdtemp(prefix="flota-bench-", dir="/var/tmp")
        self.peer = os.path.join(self.dir, "peer")
        subprocess.run(["cc", "-O2", "-static", "-o", self.peer, SOURCE], check=True)
        ctl("image", "pack", "--tag", "peer", self.peer)
        ctl("network", "create", "front")
        self.addresses = [nodes()[name]["address"] for name in ("w1", "w2")]
        self.outside = Own()
        join("outside", "br0", Namespace(CABLE), self.outside, "198.18.0.240/24")

    def end(self):
        self.outside.end()
        subprocess.run(["rm", "-rf", self.dir], check=True)

    def virtual_ip(self, client, service):
        return client.run("busybox", "nslookup", "-type=a", service, "127.0.0.11").strip().split()[-1]

    def data_path(self):
        create("near", "--network", "front", "--publish", f"8091:{HTTP}", node="w1")
        create("far", "--network", "front", "--publish", f"8092:{HTTP}", node="w2")
        create("client", "--network", "front", "--replicas", "2", node="w1")
        [near], [far], [client, other] = (tasks_of(it) for it in ("near", "far", "client"))
        hosts = [host("w1"), host("w2")]
        hand = ByHand(hosts, self.addresses)
        try:
            for it in [near, far, client, other, self.outside, *hand.tasks]:
                it.ungrouped().set(ipv4__tcp_tw_reuse=1, ipv4__ip_local_port_range="'2000 65000'")
            for it in hosts:
                it.set(netfilter__nf_conntrack_tcp_timeout_time_wait=1)
            self.beside_vxlan(client, far, hand)
            self.beside_task(client, other, far)
            self.beside_hops(near, far, hand)
            self.name_server(client)
        finally:
            hand.end()
        ctl("service", "rm", "near", "far", "client")

    def beside_vxlan(self, client, far, hand):
        client, server, address = client.ungrouped(), far.ungrouped(), front(far)
        theirs, their_server, their_address = *hand.tasks, f"{BLOCK}.12"
        with started((server, "iperf3", "-s"), (their_server, "iperf3", "-s"),
                     (server, self.peer, "echo", ECHO), (their_server, self.peer, "echo", ECHO)):
            ratios = pairs(iperf, (client, address), (theirs, their_address))
            show("TCP over an overlay, beside a VXLAN made by hand", ratios, 0.97, "times", most=False)

            def round_trip(client, address):
                return float(client.run(self.peer, "round-trips", address, ECHO, str(ROUND_TRIPS)))
            ratios = pairs(round_trip, (client, address), (theirs, their_address))
            show("round trip of 64 bytes, beside a VXLAN made by hand", ratios, 1.1, "times")

    def beside_task(self, client, other, far):
        virtual = self.virtual_ip(client, "far")
        with started((far.ungrouped(), self.peer, "http", HTTP)):
            ours, theirs = (client, f"{virtual}:{HTTP}"), (other.ungrouped(), f"{front(far)}:{HTTP}")
            ratios = pairs(lambda *it: wrk(*it, kept=True), ours, theirs)
            show("virtual IP, connections kept, beside the task itself", ratios, 0.95, "times", most=False)
            ratios = pairs(lambda *it: wrk(*it, kept=False), ours, theirs, 10)
            show("virtual IP, new connections, beside the task itself", ratios, 0.9, "times", most=False)
            decay = statistics.median(ratios[5:]) / statistics.median(ratios[:5])
            show("the same, the second five repeats beside the first", [decay], 0.9, "times", most=False)

    def beside_hops(self, near, far, hand):
        entry = self.addresses[0]
        self.outside.run("ip", "route", "add", f"{BLOCK}.0/24", "via", entry)
        servers = [near.ungrouped(), far.ungrouped(), *hand.tasks]
        with started(*[(it, self.peer, "http", HTTP) for it in servers]):
            for what, port, direct in (("on that node", 8091, f"{BLOCK}.11:{HTTP}"), ("on another", 8092, f"{entry}:8099")):
                for kept in (True, False):
                    ours, theirs = (self.outside, f"{entry}:{port}"), (self.outside, direct)
                    ratios = pairs(lambda *it: wrk(*it, kept=kept), ours, theirs)
                    kind = "kept" if kept else "new"
                    show(f"published port, task {what}, {kind}, beside the hops", ratios, 0.8, "times", most=False)

    def name_server(self, client):
        """Answers for each CPU second of the thread that gives them: what it gives on a core of its own."""
        pid = daemons()["w1"]
        thread = next(path for path in glob.glob(f"/proc/{pid}/task/*") if open(f"{path}/comm").read() == "dns\n")

        def used():
            return int(open(f"{thread}/schedstat").read().split()[0]) / 1e9
        rates, waits = [], []
        for _ in range(RUNS):
            before = used()
            answers, seconds, wait = map(float, client.run(self.peer, "names", "far", str(SECONDS)).split())
            rates.append(answers / (used() - before))
            waits.append(wait)
            print(f"    {answers / seconds:.0f} answers/s, the server's thread on {(used() - before) / seconds:.2f} of a core", flush=True)
        show("DNS, answers for a second of a core", rates, 50000, "", most=False)
        show("DNS, 99th percentile with 16 open questions", waits, 1, "ms")

    def changes(self):
        """How soon a task is reached by its service's name, on the node of each client."""
        create("client", *ON_BOTH)
        clients = tasks_of("client")
        create("web", "--network", "front", "--replicas", "0")
        waits = []
        for _ in range(CHANGES):
            probes = [client.start(self.peer, "served", name, "80") for client in clients for name in ("web", "tasks.web")]
            ctl("service", "scale", "web=1")
            waits += [float(probe.communicate(timeout=30)[0]) / 1e3 for probe in probes]
            ctl("service", "scale", "web=0")
        waits.sort()
        print(f"    median {statistics.median(waits):.1f} ms of {len(waits)}", flush=True)
        show("task listens -> reached by name everywhere, 99th percentile", [waits[len(waits) * 99 // 100]], 50, "ms")
        ctl("service", "rm", "web")

    def starts(self):
        first, another, grow = [], [], []
        # One beside the other, as in run.py: the kernel is slow to remove what a service has left.
        services = [f"{kind}-{number}" for kind in ("first", "another") for number in range(RUNS)]
        for number in range(RUNS):
            ctl("network", "create", f"new{number}")
            first.append(timed(lambda: create(f"first-{number}", "--network", f"new{number}", node="w1")))
        for number in range(RUNS):
            another.append(timed(lambda: create(f"another-{number}", "--network", "new0", node="w1")))
        for _ in range(RUNS):
            create("web", "--network", "new0", node="w1")
            grow.append(timed(lambda: ctl("service", "scale", "web=50")))
            ctl("service", "rm", "web")
        ctl("service", "rm", *services)
        show("first task of a new overlay, to running", first, 0.15)
        show("one replica on an existing overlay, to running", another, 0.1)
        show("scale 1 -> 50 on an overlay, one node", grow, 1.5)

    def losses(self):
        """From the moment at which the leader calls a node down to the last connection that was sent there."""
        late = []
        for _ in range(LOSSES):
            # Anew each time, because both of its tasks stay on the node that was not lost.
            create("web", *ON_BOTH)
            client = tasks_of("client")[0]
            address = self.virtual_ip(client, "web")
            probe = client.start(self.peer, "last-unanswered", address, "80", "8")
            log = f"/var/lib/flota-sandbox/{NAME}/{leader()}/flotad.log"
            seen = os.path.getsize(log)
            ctl("sandbox", "kill", "--name", NAME, "w2")
            last = float(probe.communicate(timeout=30)[0])
            with open(log) as file:
                file.seek(seen)
                line = next(line for line in file if "node state changed" in line and "down" in line)
            found = datetime.fromisoformat(re.search(r"\S+T\S+Z", line).group().replace("Z", "+00:00")).timestamp()
            late.append((last - found) * 1e3)
            ctl("sandbox", "start", "--name", NAME, "w2")
            until(lambda: all_ready() and len(running("web")) == 2)
            ctl("service", "rm", "web")
        show("node down -> no new connection goes there", late, 50, "ms")
        ctl("service", "rm", "client")


def one_of_many():
    """The balancer's change of one endpoint among those of a thousand services, from an example of the crate `network`."""
    root = next(it for it in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.path.exists(f"{it}/cgroup.controllers"))
    out = subprocess.run([f"{PROGRAMS}/examples/balancer", root], check=True, capture_output=True, text=True, timeout=300).stdout
    last = out.split("one change among 1000 virtual addresses of 10 backends, 1000 namespaces")[1]
    took = float(re.search(r" 10 backends: median ([\d.]+) us", last).group(1)) / 1e3
    show("one endpoint's change, 1,000 services, 1,000 tasks", [took], 0.5, "ms")


def front(task):
    """The address in `front`, which comes before the network of published ports."""
    return addresses_of(task.ungrouped())[0]


def measure():
    before = os.nice(0)
    os.nice(PRIORITY)
    bench = Bench()
    atexit.register(bench.end)
    bench.starts()
    bench.data_path()
    bench.changes()
    bench.losses()
    down()
    one_of_many()
    os.nice(before - os.nice(0))


if __name__ == "__main__":
    for it in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(it, lambda *_: sys.exit(1))
    atexit.register(down, check=False)
    measure()
    sys.exit(0 if all(RESULTS) else 1)
