#!/usr/bin/env python3
"""Figures of tasks that are replaced one after the other, and of those whose health is checked each second. Called by run.py;
alone: tasks.py PROGRAMS."""
import atexit, hashlib, io, json, os, resource, signal, statistics, subprocess, sys, tarfile, tempfile, time

from sandbox import PROGRAMS, RESULTS, RUNS, cpu, ctl, down, show, timed, until, up

WHOAMI = os.path.join(PROGRAMS, "whoami")
TASKS = 20
CHECKED = 100
SECONDS = 10
ON_W1 = ("--constraint", "node.hostname==w1")
ONE_BY_ONE = ("--update-parallelism", "1", "--update-delay", "0s", "--update-monitor", "0s")
# The bit of a signal in the masks of /proc/PID/status.
TERM = 1 << (signal.SIGTERM - 1)


def blocks_term(pid):
    with open(f"/proc/{pid}/status") as file:
        mask = next(line for line in file if line.startswith("SigBlk:"))
    return int(mask.split()[1], 16) & TERM != 0


def own_turn():
    """How long the program itself takes to start and to stop: from its start until it waits for SIGTERM, and from SIGTERM
    until it has ended. An update waits for nothing else of it, because the service has no health check."""
    process = subprocess.Popen(["unshare", "--net", WHOAMI], stdout=subprocess.DEVNULL)
    until(lambda: blocks_term(process.pid))
    process.terminate()
    process.wait()


def updates():
    own = statistics.median(timed(own_turn) for _ in range(TASKS))
    ctl("service", "create", "--name", "web", "--replicas", str(TASKS), *ONE_BY_ONE, "whoami")
    turns = [timed(lambda: ctl("service", "update", "--force", "web")) / TASKS - own for _ in range(RUNS)]
    ctl("service", "rm", "web")
    show("rolling update of 20, a task beside its own stop and start", turns, 0.2)


def add(archive, name, content, **attributes):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    for key, value in attributes.items():
        setattr(entry, key, value)
    archive.addfile(entry, io.BytesIO(content))


def import_shell():
    """An image with a shell and `true`, both busybox, and whoami as its program."""
    with open("/bin/busybox", "rb") as file:
        busybox = file.read()
    with open(WHOAMI, "rb") as file:
        whoami = file.read()
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name, content in (("bin/busybox", busybox), ("whoami", whoami)):
            add(archive, name, content, mode=0o755)
        for name in ("bin/sh", "bin/true"):
            add(archive, name, b"", type=tarfile.SYMTYPE, linkname="busybox")
    layer = layer.getvalue()
    rootfs = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}
    config = {"architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/whoami"]}, "rootfs": rootfs}
    manifest = [{"Config": "config.json", "RepoTags": ["shell:latest"], "Layers": ["layer.tar"]}]
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            add(archive, "layer.tar", layer)
            add(archive, "config.json", json.dumps(config).encode())
            add(archive, "manifest.json", json.dumps(manifest).encode())
        file.flush()
        ctl("image", "import", file.name)


def own_cpu():
    """CPU of the program of a check by itself, in seconds: `sh -c true`, and what it takes to start a process."""
    def children():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    before = children()
    for _ in range(CHECKED):
        subprocess.run(["/bin/busybox", "sh", "-c", "/bin/busybox true"], check=True)
    return (children() - before) / CHECKED


def spent():
    before = cpu()
    time.sleep(SECONDS)
    return cpu() - before


def checks():
    """The CPU of everything in the sandbox with checks and without them. What the program answers to a check over the network
    is in it, too."""
    import_shell()
    kinds = (("HTTP", ("--health-http", "http://:80/"), 0), ("TCP", ("--health-tcp", "80"), 0), ("CMD", ("--health-cmd", "/bin/busybox true"), own_cpu()))
    ctl("service", "create", "--name", "web", "--replicas", str(CHECKED), *ON_W1, "--no-healthcheck", "shell")
    idle = statistics.median(spent() for _ in range(RUNS))
    ctl("service", "rm", "web")
    for kind, flag, own in kinds:
        ctl("service", "create", "--name", "web", "--replicas", str(CHECKED), *ON_W1, *flag, "--health-interval", "1s", "shell")
        each = [((spent() - idle) / (CHECKED * SECONDS) - own) * 1e3 for _ in range(RUNS)]
        ctl("service", "rm", "web")
        show(f"a {kind} check each second of 100 tasks, CPU of a check", each, 1, "ms")


def measure():
    up()
    ctl("image", "pack", "--tag", "whoami", WHOAMI)
    updates()
    checks()
    down()


if __name__ == "__main__":
    for it in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(it, lambda *_: sys.exit(1))
    atexit.register(down, check=False)
    measure()
    sys.exit(0 if all(RESULTS) else 1)
