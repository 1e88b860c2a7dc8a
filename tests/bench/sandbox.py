"""The sandbox that the figures are of, what asks it, and the lines of figures beside their targets. Used by run.py,
network.py and tasks.py; the first argument of each is the folder of the programs."""
import json, os, statistics, subprocess, sys, time

PROGRAMS = os.path.abspath(sys.argv[1])
CTL = os.path.join(PROGRAMS, "ctl")
NAME = "bench"
RUNS = 5
RESULTS = []


def ctl(*words, check=True):
    done = subprocess.run([CTL, *words], capture_output=True, text=True, timeout=120)
    if check and done.returncode != 0:
        sys.exit(f"ctl {' '.join(words)}: {done.stderr}")
    return done.stdout


def rows(*words):
    return json.loads(ctl(*words, "--format", "json"))


def timed(work):
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def until(condition, bound=60):
    end = time.monotonic() + bound
    while not condition():
        if time.monotonic() > end:
            sys.exit("not in time")
        time.sleep(0.005)


def show(what, values, target, unit="s", most=True):
    median, worst = statistics.median(values), (max if most else min)(values)
    good = median <= target if most else median >= target
    sign = "<=" if most else ">="
    RESULTS.append(good)
    print(f"{what:58} {median:9.3f} {unit:6} worst {worst:9.3f}   target {sign} {target:<7} {'ok' if good else 'MISSED'}", flush=True)


def up():
    down()
    ctl("sandbox", "up", "--name", NAME)
    os.environ["FLOTA_HOST"] = ctl("sandbox", "env", "--name", NAME).strip().split("=", 1)[1]


def down(check=True):
    ctl("sandbox", "down", "--name", NAME, check=check)


def nodes():
    with open(f"/var/lib/flota-sandbox/{NAME}/state.json") as file:
        return {node["name"]: node for node in json.load(file)["nodes"]}


def daemons():
    return {name: node["daemon"]["pid"] for name, node in nodes().items()}


def cpu():
    """CPU seconds of everything in the sandbox, its containers too."""
    with open(f"/sys/fs/cgroup/cpuacct/flota-sandbox/{NAME}/cpuacct.usage") as file:
        return int(file.read()) / 1e9


def leader():
    return next(node["name"] for node in rows("node", "ls") if node["leader"])


def all_ready():
    return all(node["state"] == "ready" for node in rows("node", "ls"))
