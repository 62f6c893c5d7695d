#!/usr/bin/env bash
# Makes a Docker engine available if this user can: uses the one that runs, else installs Debian's and starts it.
# Prints one line saying what it found or did. Exit status 0 when an engine answers, 1 when none can be had here.
# Never starts a second daemon beside a live one: that one's pid file is checked first.
set -u
log=${ROCK_DOCKER_LOG:-/tmp/rock-dockerd.log}

answers() { command -v docker >/dev/null 2>&1 && timeout 10 docker info >/dev/null 2>&1; }
none() { echo "docker: $1 Sandboxes will run under bubblewrap where it is installed."; exit 1; }

if answers; then echo "docker: engine $(timeout 10 docker version --format '{{.Server.Version}}') answers"; exit 0; fi
[ -n "${DOCKER_HOST:-}" ] && none "DOCKER_HOST=$DOCKER_HOST does not answer."
if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
  none "no permission on /var/run/docker.sock; run 'sudo usermod -aG docker $(id -un)' and log in again."
fi
if [ "$(id -u)" != 0 ]; then
  none "no engine answers, and only root can install or start one ('sudo apt-get install docker.io')."
fi
if ! command -v dockerd >/dev/null 2>&1; then
  command -v apt-get >/dev/null 2>&1 || none "no engine is installed and this is no Debian system."
  echo "docker: installing Debian's docker.io (once)"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq docker.io; } >"$log" 2>&1 \
    || none "apt-get install docker.io failed (see $log)."
  answers && { echo "docker: engine installed and running"; exit 0; }
fi
for pid_file in /var/run/docker.pid /run/docker.pid; do
  if [ -r "$pid_file" ] && pid=$(cat "$pid_file") && [ -d "/proc/$pid" ] && grep -q dockerd "/proc/$pid/comm"; then
    for _ in $(seq 30); do answers && { echo "docker: engine answers"; exit 0; }; sleep 1; done
    none "a daemon runs as process $pid but does not answer."
  fi
done
setsid nohup dockerd >"$log" 2>&1 </dev/null &
for _ in $(seq 60); do
  answers && { echo "docker: engine started (log: $log)"; exit 0; }
  sleep 0.5
done
none "dockerd does not come up here (see $log)."
