#!/usr/bin/env bash
# Shows Flota in a minute: a cluster on this machine, a service, and a worker that dies.
set -euo pipefail
programs=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$programs:$PATH"
say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
# wait_for WHAT COMMAND...: waits for a minute at most.
wait_for() {
  local what=$1; shift
  for _ in $(seq 600); do "$@" && return; sleep 0.1; done
  echo "error: timed out: $what" >&2; exit 1
}

ctl sandbox down --name demo
say "A cluster of three managers and two workers, each in namespaces of its own"
run ctl sandbox up --name demo
eval "$(ctl sandbox env --name demo)"
run ctl node ls
say "Make an image of a static program; two nodes keep it"
run ctl image pack --tag whoami "$programs/whoami"
say "Deploy a service from a Compose file"
run ctl stack deploy -c "$here/whoami.yaml" shop
run ctl service scale shop_web=6
run ctl service ps shop_web
say "Run a command in a task, on any node"
run ctl exec shop_web.1 -- /whoami get http://127.0.0.1/
say "Its stack is a network: the service has a name and a virtual IP there"
answer() { run "$@" | grep -E '^(\$|hostname)'; }
answer ctl exec shop_web.1 -- /whoami get http://web/
say "Every node answers on the published port"
for node in m1 m2 m3 w1 w2; do
  answer ctl sandbox exec --name demo "$node" -- "$programs/whoami" get http://127.0.0.1:8080/
done
say "Kill a worker: its link goes down silently, then everything on it is killed"
run ctl sandbox kill --name demo w1
w1_is_down() { ctl node ls --filter name=w1 --filter state=down -q | grep -q .; }
wait_for "w1 is down" w1_is_down
run ctl node ls
six_run() { ctl service ls --format json | grep -q '"running": 6'; }
wait_for "six tasks run" six_run
say "Its tasks now run elsewhere"
run ctl service ps shop_web
say "The cluster is still up. To use it, to remove it, and to see the service at http://127.0.0.1:8080/ in a browser:"
use="eval \"\$($programs/ctl sandbox env --name demo)\""
echo "$use"
echo "$programs/ctl sandbox down --name demo"
echo "$use; $programs/ctl port-forward shop_web 8080:80"
