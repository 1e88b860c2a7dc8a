#!/usr/bin/env bash
# Cargo calls this in the place of rustc for each crate of the workspace, with rustc's path and arguments.
#
# Links two programs statically: flota-runtime outlives whatever the daemon was linked with, and whoami runs in a container
# that has no libraries. How a program is linked concerns only its own crate, so it shares all others with the other
# programs; a build with RUSTFLAGS for itself would compile each of them a second time.
#
# In bash, since dash does not pass on variables with a hyphen in their names, such as CARGO_BIN_EXE_flota-simulate.
case " $* " in
  *" --crate-name flota_runtime "*" --crate-type bin "* | *" --crate-name whoami "*" --crate-type bin "*)
    exec "$@" -Ctarget-feature=+crt-static ;;
esac
exec "$@"
