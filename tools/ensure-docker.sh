#!/usr/bin/env bash
# Makes a Docker engine available if this user can: uses the one that runs, else installs Debian's and starts it.
# Prints one line saying what it found or did. Exit status 0 when an engine answers, 1 when none can be had here.
# Never uses sudo, and never starts a second daemon beside a live one: that one's pid file is checked first.
set -u
log=${ROCK_DOCKER_LOG:-${TMPDIR:-/tmp}/rock-dockerd-$(id -u).log}

answers() { command -v docker >/dev/null 2>&1 && timeout 10 docker info >/dev/null 2>&1; }
none() { echo "docker: $1 Sandboxes will run under bubblewrap where it is installed."; exit 1; }
found() { echo "docker: engine $(timeout 10 docker version --format '{{.Server.Version}}') $1"; exit 0; }

wait_for_it() { # wait_for_it TRIES [PID]: until an engine answers, or PID has ended
  for _ in $(seq "$1"); do
    answers && return 0
    [ -z "${2:-}" ] || kill -0 "$2" 2>/dev/null || return 1
    sleep 0.5
  done
  return 1
}

answers && found "answers"
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
  answers && found "installed and running"
fi
for pid_file in /var/run/docker.pid /run/docker.pid; do
  if [ -r "$pid_file" ] && pid=$(cat "$pid_file") && [ -d "/proc/$pid" ] && grep -q dockerd "/proc/$pid/comm"; then
    wait_for_it 60 "$pid" && found "answers"
    none "a daemon runs as process $pid but does not answer."
  fi
done
if [ -d /run/systemd/system ]; then
  systemctl start docker >"$log" 2>&1 && wait_for_it 60 && found "started"
  none "'systemctl start docker' does not bring one up (see 'journalctl -u docker')."
fi
setsid nohup dockerd >"$log" 2>&1 </dev/null &
wait_for_it 60 $! && found "started (log: $log)"
none "dockerd does not come up here (see $log)."
