#!/bin/sh
# Make the testbed's certificate authority and a certificate a site, under secrets/tls. Never
# overwrites. Needs the orchestrator's image and nothing else: docker compose build
#
#   deploy/tls/make-certificates.sh
set -eu
cd "$(dirname "$0")/../.."
if [ -e secrets/tls ]; then
  echo "error: secrets/tls is there already; to start anew, remove it and call this again" >&2
  exit 4
fi
[ -d secrets ] || { echo "error: there is no secrets/; make it with deploy/make-secrets.sh" >&2; exit 4; }
trap 'rm -rf secrets/tls.part' EXIT
trap 'exit 130' INT TERM
rm -rf secrets/tls.part && mkdir secrets/tls.part
certificates() {
  docker run --rm --network none --user "$(id -u):$(id -g)" --volume "$PWD/secrets/tls.part:/tls" \
    federated-maintenance-orchestrator:0.1.0 certificates "$@"
}
certificates ca --out /tls --name "Testbed"
for site in factory-1 factory-2 factory-3; do
  certificates issue "$site" --ca /tls --out /tls
  # Only you enter secrets/, and the containers' account, nobody of this machine, must read it.
  chmod 444 "secrets/tls.part/$site.key"
done
mv secrets/tls.part secrets/tls
echo "made secrets/tls: an authority, and a certificate for each of three sites"
