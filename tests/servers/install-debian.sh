#!/bin/sh
# Install Debian packages (the arguments) without letting them start the services that they carry.
# Needs root. `policy-rc.d` is Debian's own way to forbid a start; one that is there already is left as it is.
set -eu
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  trap 'exit 1' HUP INT TERM
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
# apt-get update first: the lists of a fresh machine are empty or old.
apt-get -o DPkg::Lock::Timeout=120 -qq update >&2 || echo "apt-get update failed; going on with the lists that are there" >&2
apt-get -o DPkg::Lock::Timeout=120 -qq install --yes --no-install-recommends "$@" >/dev/null
