#!/usr/bin/env python3
"""Figures of a release build beside their targets: `make bench`. Median of five runs, and the worst. A sandbox of
3 managers and 2 workers, in namespaces of its own; bounded in count and time; ends by removing it."""
import atexit, glob, itertools, json, os, signal, statistics, subprocess, sys, time

import network
import tasks
from sandbox import CTL, NAME, PROGRAMS, RESULTS, RUNS, all_ready, cpu, ctl, daemons, down, leader, rows, show, timed, until, up
from writes import Etcd, Flota

# Whoever ends it early ends what it made, too.
for it in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(it, lambda *_: sys.exit(1))
WRITES = os.path.join(PROGRAMS, "flota-writes")
SIMULATE = os.path.join(PROGRAMS, "flota-simulate")


def memory(pid, key):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = [line.split() for line in file]
    return sum(int(line[1]) for line in lines if line[0] in key) / 1024


def flota():
    """The managers of the sandbox as they are now, for writes."""
    def system_info(name):
        return json.loads(ctl("--host", f"unix:///run/flota-sandbox/{NAME}/{name}/flota.sock", "system", "info", "--format", "json"))

    def ping(name, address):
        out = ctl("sandbox", "exec", "--name", NAME, name, "--", "busybox", "ping", "-q", "-c", "3", address)
        # round-trip min/avg/max = 0.04/0.05/0.06 ms
        return float(out.rsplit("=", 1)[1].split("/")[1])
    return Flota(WRITES, f"/var/lib/flota-sandbox/{NAME}", rows("node", "ls"), daemons(), system_info, ping)


def longest_gap(act, name):
    """The longest time between two acknowledged writes, one after the other, while `act` runs and for ten more."""
    acked, left = [time.monotonic()], 10
    process = subprocess.Popen([CTL, *act], stdout=subprocess.DEVNULL)
    for number in itertools.count():
        ctl("service", "create", "--detach", "--name", f"{name}-{number}", "--replicas", "0", "whoami")
        acked.append(time.monotonic())
        left -= process.poll() is not None
        if left == 0:
            return max(after - before for before, after in itertools.pairwise(acked))


def simulated(*words):
    """The figures that the simulator prints, by name."""
    done = subprocess.run([SIMULATE, *words], capture_output=True, text=True, timeout=1200)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        sys.exit(f"flota-simulate {' '.join(words)}: {done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line[58:59] == " "]
    return {line[:58].strip(): float(line[58:].split()[0]) for line in lines}


atexit.register(down, check=False)
begun = []
for _ in range(RUNS):
    down()
    begun.append(timed(lambda: ctl("sandbox", "up", "--name", NAME)))
show("ctl sandbox up, 3 + 2 nodes, all ready", begun, 3)
up()
ctl("image", "pack", "--tag", "whoami", os.path.join(PROGRAMS, "whoami"))
ctl("service", "create", "--name", "warm", "--replicas", "10", "whoami")
ctl("service", "rm", "warm")
create, grow, grow_cpu, remove = [], [], [], []
here = ["--constraint", "node.hostname==w1"]
# One beside the other: the kernel takes some 40 ms to remove a network namespace, after the container is gone, and holds up
# those that are made meanwhile.
for number in range(RUNS):
    create.append(timed(lambda: ctl("service", "create", "--name", f"one-{number}", *here, "whoami")))
ctl("service", "rm", *(f"one-{number}" for number in range(RUNS)))
for _ in range(RUNS):
    ctl("service", "create", "--name", "web", *here, "whoami")
    before = cpu()
    grow.append(timed(lambda: ctl("service", "scale", "web=50")))
    grow_cpu.append(cpu() - before)
    remove.append(timed(lambda: ctl("service", "rm", "web")))
show("service create, 1 replica, to running", create, 0.08)
show("scale 1 -> 50 on one node, all running", grow, 2)
show("scale 1 -> 50, CPU of the whole sandbox", grow_cpu, 1.5)
show("remove 50", remove, 0.7)

w1 = daemons()["w1"]
private = ("Private_Clean:", "Private_Dirty:")
before = memory(w1, private)
ctl("service", "create", "--name", "web", "--replicas", "50", "--constraint", "node.hostname==w1", "whoami")
supervisors = [int(pid) for pid in subprocess.run(["pgrep", "-f", "flota-runtime supervise /"], capture_output=True, text=True).stdout.split()]
each = [memory(pid, private) for pid in supervisors]
show("supervisor, private memory", each, 0.25, "MiB")
share = (memory(w1, private) - before) / 50
show("a container's private memory: supervisor and daemon's share", [it + share for it in each], 0.4, "MiB")
ctl("service", "rm", "web")

network.measure()
tasks.measure()
up()
ctl("image", "pack", "--tag", "whoami", os.path.join(PROGRAMS, "whoami"))
gone, written = [], []


def running():
    return rows("service", "ps", "web", "--filter", "state=running", "--filter", "desiredState=running")


for _ in range(RUNS):
    ctl("service", "create", "--name", "web", "--replicas", "10", "--constraint", "node.role==worker", "whoami")

    # A node that comes and goes gets tasks last, so it is not always the same one that has them.
    lost = running()[0]["node"]

    def dies():
        # The link goes silent first: from here on it counts.
        ctl("sandbox", "kill", "--name", NAME, lost)
        until(lambda: len(running()) == 10 and all(task["node"] != lost for task in running()))
    gone.append(timed(dies))
    ctl("sandbox", "start", "--name", NAME, lost)
    until(all_ready)
    ctl("service", "rm", "web")
show("worker gone -> its tasks run elsewhere", gone, 4.5)
for run in range(RUNS):
    name = leader()

    def next_write():
        ctl("sandbox", "kill", "--name", NAME, name)
        ctl("service", "create", "--detach", "--name", f"after{run}", "--replicas", "0", "whoami")
    written.append(timed(next_write))
    ctl("sandbox", "start", "--name", NAME, name)
    until(all_ready)
show("leader killed -> next write acknowledged", written, 1)
stopped = []
for run in range(RUNS):
    name = leader()
    stopped.append(longest_gap(["sandbox", "stop", "--name", NAME, "--daemon-only", name], f"stopped{run}"))
    ctl("sandbox", "start", "--name", NAME, name)
    until(all_ready)
show("leader stopped in order, longest time without a write", stopped, 0.2)

etcd = Etcd(WRITES, until)
atexit.register(etcd.end)
for parallel, target in ((1, 1), (16, 1.2), (64, 1.5)):
    ours, theirs, waits = [], [], []
    for _ in range(RUNS):
        up()
        result, wait = flota().run_with_waits(parallel, 3)
        ours.append(result)
        waits.append(wait)
        theirs.append(etcd.run(parallel, 3))
    show(f"committed writes, {parallel} in flight, beside etcd's", [us[0] / them[0] for us, them in zip(ours, theirs)], target, "times", most=False)
    for who, results in (("Flota", ours), ("etcd", theirs)):
        rate, p50, p99 = (statistics.median(column) for column in zip(*results))
        print(f"  {who:5} {rate:7.0f} writes/s, median {p50:.2f} ms, 99th percentile {p99:.2f} ms", flush=True)
    for what in waits[0] if all(waits) else ():
        unit = "" if what.startswith("entries") else "ms"
        print(f"    {what:24} {statistics.median(wait[what] for wait in waits):8.3f} {unit}".rstrip(), flush=True)
    if not all(waits):
        print("    without its parts: the managers' logs keep no statistics", flush=True)
    if parallel == 64:
        show("99th percentile, 64 in flight, beside etcd's", [us[2] / them[2] for us, them in zip(ours, theirs)], 1, "times")
etcd.end()
# Before the cluster that is looked at idle: this takes a whole core.
down()
sys.stdout.flush()
scale = simulated("--scale", "5000", "100000")
show("5,000 workers, 100,000 tasks: create to running", [scale["create to running"]], 5000, "per s", most=False)
show("the scheduler alone, 5,000 nodes, 100,000 tasks", [simulated("--schedule", "5000", "100000")["the scheduler alone"]], 200000, "per s", most=False)
show("a crash loop of 1,000 tasks, Raft entries a second", [simulated("--crash", "20", "1000")["a crash loop of all tasks, Raft entries a second"]], 10, "per s")
loops = simulated("--loops", "5000", "100000")
show("all loops, a look at everything, the same cluster", [loops["all loops, a look at everything"] / 1e3], 1)
show("all loops, a changed label, the same cluster", [loops["all loops, a changed label"] / 1e3], 1)
show("all loops, a lost node with 200 tasks, the same", [loops["all loops, a lost node with 200 tasks"]], 50, "ms")
show("one node of 5,000 lost and back, CPU of the leader", [scale["a lost and returned node, CPU time of the leader"]], 20, "ms")
show("memory of a manager, 100,000 tasks", [scale["memory of a follower, which has no sessions"]], 150, "MB")
show("  of the one that has the sessions of 5,000 workers", [scale["memory of the leader"]], 150, "MB")
show("leader gone -> 5,000 sessions with the next", [scale["leader gone -> all sessions with the next"]], 10)
up()
time.sleep(5)
nodes, rss = daemons(), ("Rss:",)
show("resident memory, idle manager", [memory(nodes[name], rss) for name in ("m1", "m2", "m3")], 30, "MiB")
show("resident memory, idle worker", [memory(nodes[name], rss) for name in ("w1", "w2")], 18, "MiB")


def threads(pid):
    """CPU time of each thread in seconds, from the scheduler: /proc/PID/stat counts only in samples of 10 ms."""
    files = glob.glob(f"/proc/{pid}/task/*/schedstat")
    return {file: int(open(file).read().split()[0]) / 1e9 for file in files}


before = {name: threads(nodes[name]) for name in ("m1", "m2", "m3")}
time.sleep(20)
used = [sum(now - before[name].get(thread, 0) for thread, now in threads(nodes[name]).items()) for name in before]
show("CPU of an idle manager in 20 s", used, 0.1)
sizes = [os.path.getsize(os.path.join(PROGRAMS, name)) / 2**20 for name in ("flotad", "ctl", "flota-runtime")]
show("three programs, installed size", [sum(sizes)], 40, "MiB")
down()
sys.exit(0 if all(RESULTS) else 1)
