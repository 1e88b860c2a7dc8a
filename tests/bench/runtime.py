#!/usr/bin/env python3
"""The container runtime beside crun, runc and the least that is still a container (floor.c): `make bench-runtime`.

The same bundle for all, one after the other in turn, in a private mount namespace; CPU is that of the runtime and of the
container's processes, as wait4(2) counts it. Nothing is subtracted. Bounded in count and time; removes what it made."""
import atexit, ctypes, glob, json, os, shutil, signal, socket, statistics, struct, subprocess, sys, tempfile, time

UNIFIED = "/sys/fs/cgroup/unified"
NAME = "flota-bench"
if "FLOTA_BENCH_INSIDE" not in os.environ:
    # A session of its own: what else runs here weighs less than it (sched(7), "The autogroup feature").
    os.environ["FLOTA_BENCH_INSIDE"] = "1"
    os.execvp("setsid", ["setsid", "-w", "unshare", "-m", "--propagation", "private", sys.executable, *sys.argv])
PROGRAMS, EXAMPLES, SOURCES = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), os.path.dirname(os.path.abspath(__file__))
RUNTIMES = {"flota": os.path.join(PROGRAMS, "flota-runtime"), "crun": shutil.which("crun"), "runc": shutil.which("runc")}
RUNS, AT_ONCE, STARTS = 40, 4, 200
CAPABILITIES = ["CAP_" + it for it in ("CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
                                       "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE").split()]
MASKED = ["/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
          "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/devices/virtual/powercap",
          "/sys/firmware"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
MOUNTS = [("/proc", "proc", "proc", "nosuid,noexec,nodev"),
          ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
          ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
          ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
          ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
          ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
          ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro")]
DEVICES = [{"allow": False, "access": "rwm"}] + [
    {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
    for major, minor in ((1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1), (1, 7), (136, None), (5, 2))]
DEVICES = [{key: value for key, value in it.items() if value is not None} for it in DEVICES]
LIBC = ctypes.CDLL(None, use_errno=True)
RESULTS = []


def show(what, value, unit, target=None, most=True, note=""):
    end = ""
    if target is not None:
        good = value <= target if most else value >= target
        RESULTS.append(good)
        end = f"target {'<=' if most else '>='} {target:<6} {'ok' if good else 'MISSED'}"
    print(f"{what:58} {value:9.3f} {unit:6} {note:24} {end}".rstrip(), flush=True)


class Bench:
    """A folder with the bundles, the floor, and the runtimes' states."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="flota-bench-", dir="/var/tmp")
        atexit.register(self.end)
        # Runtimes keep their states in /run. An ext4 without a journal, as virtual machines have it, would look at each
        # inode that was freed in the last minutes before it takes a new one (ialloc.c, recently_deleted).
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,size=64m", "tmpfs", self.dir], check=True)
        self.errors = open(f"{self.dir}/errors", "w+")
        self.rootfs = f"{self.dir}/rootfs"
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            os.makedirs(f"{self.rootfs}/{name}")
        shutil.copy(shutil.which("busybox"), f"{self.rootfs}/bin/busybox")
        for name in ("true", "sleep"):
            os.symlink("busybox", f"{self.rootfs}/bin/{name}")
        self.true = f"{self.rootfs}/bin/true"
        subprocess.run(["cc", "-O2", "-nostdlib", "-static", "-fno-stack-protector", "-o", f"{self.rootfs}/bin/pause", f"{SOURCES}/pause.c"],
                       check=True)
        words = [f"{EXAMPLES}/default-profile", *CAPABILITIES]
        self.seccomp = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        self.grouped = os.path.exists("/sys/fs/cgroup/pids/cgroup.procs")
        self.floor = [self.make_floor(), self.rootfs] + ([] if self.grouped else ["--no-groups"])

    def make_floor(self):
        allowed = [it for it in self.seccomp["syscalls"] if it["action"] == "SCMP_ACT_ALLOW"]
        names = "\n".join(sorted({name for it in allowed for name in it["names"]}))
        maker, floor = f"{self.dir}/genbpf", f"{self.dir}/floor"
        subprocess.run(["cc", "-O2", "-o", maker, f"{SOURCES}/genbpf.c", "-lseccomp"], check=True)
        with open(f"{self.dir}/bpf.h", "w") as file:
            subprocess.run([maker], input=names + "\n", text=True, stdout=file, check=True)
        subprocess.run(["cc", "-O2", "-I", self.dir, "-o", floor, f"{SOURCES}/floor.c"], check=True)
        return floor

    def bundle(self, name, arguments=("/bin/true",), network=True, group=None):
        kinds = ["pid", "ipc", "uts", "mount"] + ["network"] * network
        period, quota = 100000, 100000
        config = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": list(arguments), "cwd": "/", "oomScoreAdj": 0,
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=bench"],
                "capabilities": {it: CAPABILITIES for it in ("bounding", "effective", "permitted")},
            },
            "root": {"path": self.rootfs}, "hostname": "bench",
            "mounts": [{"destination": to, "type": kind, "source": source, "options": options.split(",")}
                       for to, kind, source, options in MOUNTS],
            "linux": {
                "cgroupsPath": group or f"/{NAME}-{name}", "namespaces": [{"type": it} for it in kinds], "seccomp": self.seccomp,
                "resources": {"devices": DEVICES, "memory": {"limit": 64 << 20}, "pids": {"limit": 100},
                              "cpu": {"shares": 512, "period": period, "quota": quota}},
                "maskedPaths": MASKED, "readonlyPaths": READ_ONLY,
            },
        }
        path = f"{self.dir}/{name}"
        os.makedirs(path)
        with open(f"{path}/config.json", "w") as file:
            json.dump(config, file)
        return path

    def command(self, runtime, *words):
        return [RUNTIMES[runtime], "--root", f"{self.dir}/states-{runtime}", *words]

    def run(self, runtime, bundle, number):
        return self.floor if runtime == "floor" else self.command(runtime, "run", "--bundle", bundle, f"b{number}")

    def spawn(self, words):
        # Not a fork of this process, which is larger than what it starts: vfork, as a small program would.
        null, errors = os.devnull, self.errors.fileno()
        files = [(os.POSIX_SPAWN_OPEN, 0, null, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, null, os.O_WRONLY, 0),
                 (os.POSIX_SPAWN_DUP2, errors, 2)]
        return os.posix_spawn(words[0], words, os.environ, file_actions=files)

    def measure(self, words):
        """CPU and wall time, in ms."""
        begun = time.monotonic()
        _, status, used = os.wait4(self.spawn(words), 0)
        wall = time.monotonic() - begun
        if status != 0:
            self.errors.seek(0)
            sys.exit(f"{' '.join(words)} ended with status {status}: {self.errors.read()[-1000:]}")
        return 1e3 * (used.ru_utime + used.ru_stime), 1e3 * wall

    def end(self):
        for runtime in RUNTIMES:
            states = f"{self.dir}/states-{runtime}"
            for name in os.listdir(states) if os.path.isdir(states) else []:
                subprocess.run(self.command(runtime, "delete", "--force", name), capture_output=True, timeout=20)
        remove_groups()
        self.errors.close()
        subprocess.run(["umount", "--lazy", self.dir], capture_output=True)
        os.rmdir(self.dir)


def remove_groups():
    for path in [*glob.glob(f"/sys/fs/cgroup/{NAME}-*"), *glob.glob(f"/sys/fs/cgroup/*/{NAME}-*")]:
        for folder, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                pass


def in_turn(bench, acts, runs, warm=3):
    """Measures each of the acts in turn: name → (CPU, wall) of each run."""
    found = {name: [] for name in acts}
    for number in range(-warm, runs):
        for name, act in acts.items():
            measured = bench.measure(act(number + warm))
            if number >= 0:
                found[name].append(measured)
    return found


def ratio(found, ours, theirs, index):
    return statistics.median(one[index] / other[index] for one, other in zip(found[ours], found[theirs]))


def show_all(what, found):
    for name, values in found.items():
        wall = statistics.median(it[1] for it in values)
        show(f"{what}, {name}: CPU", statistics.median(it[0] for it in values), "ms", note=f"wall {wall:.2f} ms")


def measure_run(bench):
    bundle = bench.bundle("run")
    show("fork and exec alone, of the same /bin/true: CPU", statistics.median(bench.measure([bench.true])[0] for _ in range(RUNS)), "ms")
    names = ["flota", "crun", "runc", "floor"]
    found = in_turn(bench, {it: (lambda number, it=it: bench.run(it, bundle, number)) for it in names}, RUNS)
    show_all("run", found)
    show("run, flota to crun: CPU", ratio(found, "flota", "crun", 0), "", 0.35)
    show("run, flota to floor: CPU", ratio(found, "flota", "floor", 0), "", 2)
    show("run, flota to crun: wall", ratio(found, "flota", "crun", 1), "", 0.5)
    show("run, flota to runc: CPU", ratio(found, "flota", "runc", 0), "")


def measure_others(bench):
    """exec and delete."""
    def started(runtime, name):
        bundle = bench.bundle(f"{name}-{runtime}", ("/bin/sleep", "600"))
        bench.measure(bench.command(runtime, "run", "--detach", "--bundle", bundle, name))
    for runtime in ("flota", "crun"):
        started(runtime, "exec")
    exec_true = {it: (lambda _, it=it: bench.command(it, "exec", "exec", "/bin/true")) for it in ("flota", "crun")}
    found = in_turn(bench, exec_true, RUNS)
    show_all("exec", found)
    show("exec, flota to crun: CPU", ratio(found, "flota", "crun", 0), "", 0.35)
    deleted = {it: [] for it in ("flota", "crun")}
    for number in range(10):
        for runtime, values in deleted.items():
            started(runtime, f"delete{number}")
            values.append(bench.measure(bench.command(runtime, "delete", "--force", f"delete{number}")))
    show_all("delete --force, of one that runs", deleted)
    show("delete, flota to crun: CPU", ratio(deleted, "flota", "crun", 0), "")


def measure_at_once(bench):
    bundles = [bench.bundle(f"once{it}") for it in range(AT_ONCE)]
    for runtime in ("flota", "crun", "runc", "floor"):
        free, running, bad = list(range(AT_ONCE)), {}, 0
        begun = time.monotonic()
        for number in range(STARTS + AT_ONCE):
            if not free and running:
                pid, status = os.wait()
                free.append(running.pop(pid))
                bad += status != 0
            if number < STARTS:
                place = free.pop()
                running[bench.spawn(bench.run(runtime, bundles[place], number))] = place
        while running:
            pid, status = os.wait()
            running.pop(pid)
            bad += status != 0
        if bad:
            sys.exit(f"{bad} starts by {runtime} failed")
        rate = STARTS / (time.monotonic() - begun)
        show(f"starts/s with {AT_ONCE} at once, {runtime}", rate, "/s", 120 if runtime == "flota" else None, most=False)


def memory(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = {line.split()[0]: line.split()[1] for line in file}
    kib = lambda *names: sum(int(lines[it]) for it in names) / 1024
    return kib("Private_Clean:", "Private_Dirty:"), kib("Pss:")


class Usage:
    """CPU of all that is in a group made for this, and below it, in ms."""

    def __init__(self, name):
        one = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        self.v2, self.dir = one, f"/sys/fs/cgroup{'' if one else '/cpuacct'}/{name}"
        os.makedirs(f"{self.dir}/caller")

    def join(self):
        with open(f"{self.dir}/caller/cgroup.procs", "w") as file:
            file.write("0")

    def read(self):
        with open(f"{self.dir}/{'cpu.stat' if self.v2 else 'cpuacct.usage'}") as file:
            text = file.read()
        return int(text.split()[1]) / 1e3 if self.v2 else int(text) / 1e6


def measure_embedded(bench):
    """From the library's call to the program: all CPU in between, the caller's own too."""
    group = f"{NAME}-embedded"
    config = bench.bundle("embedded", ("/bin/pause",), network=False, group=f"/{group}")
    usage = Usage(group)
    words = [f"{EXAMPLES}/supervise", RUNTIMES["flota"], f"{bench.dir}/supervised", f"{config}/config.json"]
    caller = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=usage.join)
    used, wall, supervisors = [], [], []
    try:
        # One after the other without a pause, as all the others here.
        first = usage.read()
        for number in range(RUNS):
            before = usage.read()
            caller.stdin.write("\n")
            caller.stdin.flush()
            words = caller.stdout.readline().split()
            used.append(usage.read() - before)
            if len(words) != 2:
                sys.exit("a supervised container did not start")
            wall.append(1e3 * float(words[0]))
            supervisors.append(int(words[1]))
        # What ends only after a start: the helpers, and the program's own first steps.
        time.sleep(0.1)
        whole = (usage.read() - first) / RUNS
        each = [memory(it) for it in supervisors]
    finally:
        caller.stdin.close()
        caller.wait(30)
    # The first reads the programs from disk.
    used, wall = used[3:], wall[3:]
    show("embedded, call of the library to program runs: CPU", statistics.median(used), "ms", 3, note=f"wall {statistics.median(wall):.2f} ms")
    show("  with what it does after that, mean: CPU", whole, "ms")
    show("supervisor, private memory", statistics.median(it[0] for it in each), "MiB", 0.25)
    show(f"supervisor, proportional memory, of {RUNS}", statistics.median(it[1] for it in each), "MiB")


def link(name, peer, pid):
    """A pair of virtual links, one end in the network namespace of a process (rtnetlink(7))."""
    def attribute(kind, value):
        return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    none = bytes(16)
    inner = none + attribute(3, peer + b"\0") + attribute(19, struct.pack("I", pid))
    body = none + attribute(3, name + b"\0") + attribute(18, attribute(1, b"veth") + attribute(2, attribute(1, inner)))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as it:
        # RTM_NEWLINK, as a request that creates, is acknowledged and refuses what is there.
        it.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        error = struct.unpack_from("i", it.recv(4096), 16)[0]
    if error:
        raise OSError(-error, "make a pair of links")


def measure_network():
    """What the kernel itself needs for a network namespace. Removed it is when a link's other end in it is gone."""
    def one():
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            begun = time.monotonic()
            LIBC.unshare(0x40000000)
            os.write(writer, struct.pack("d", time.monotonic() - begun))
            signal.pause()
        made = struct.unpack("d", os.read(reader, 8))[0]
        link(b"flota0", b"flota1", pid)
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while any(name == "flota0" for _, name in socket.if_nameindex()):
            time.sleep(0.0005)
        for it in (reader, writer):
            os.close(it)
        return made, time.monotonic() - begun
    # In one of its own: the machine's links are not touched.
    LIBC.unshare(0x40000000)
    found = [one() for _ in range(15)]
    show("network namespace, to make", 1e3 * statistics.median(it[0] for it in found), "ms")
    show("network namespace, to remove (by the kernel, later)", 1e3 * statistics.median(it[1] for it in found), "ms")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.alarm(180)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("not in time"))
    # crun 1.8 refuses a machine with both versions of control groups.
    if os.path.ismount(UNIFIED):
        subprocess.run(["umount", UNIFIED], check=True)
    try:
        os.nice(-10)
        with open("/proc/self/autogroup", "w") as file:
            file.write("-15")
    except OSError:
        pass
    bench = Bench()
    print(f"{os.uname().release}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {RUNS} runs of each, medians"
          f"{'' if bench.grouped else '; the floor without control groups'}", flush=True)
    measure_run(bench)
    measure_others(bench)
    measure_at_once(bench)
    measure_embedded(bench)
    measure_network()
    show("flota-runtime, size", os.path.getsize(RUNTIMES["flota"]) / 1e6, "MB", 3)
    sys.exit(0 if all(RESULTS) else 1)


main()
