#!/bin/sh
# Make the testbed's passwords: a file each under secrets/, which git ignores. Never overwrites.
#
#   deploy/make-secrets.sh
#
# The files can be read by everybody, because the containers' account is nobody of this machine, and
# the folder can be entered by you alone.
set -eu
cd "$(dirname "$0")/.."
if [ -e secrets ]; then
  echo "error: secrets/ is there already, and running sites know what is in it; to start anew: docker compose down -v, remove it, and call this again" >&2
  exit 4
fi
umask 077
trap 'rm -rf secrets.part' EXIT
trap 'exit 130' INT TERM
rm -rf secrets.part && mkdir secrets.part
for site in factory-1 factory-2 factory-3; do
  for account in operator researcher; do
    head -c 24 /dev/urandom | base64 >"secrets.part/$site.$account"
    chmod 444 "secrets.part/$site.$account"
  done
done
mv secrets.part secrets
echo "made secrets/: two passwords for each of three sites"
