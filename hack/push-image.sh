#!/usr/bin/env bash
# push-image.sh HOST/NAME:TAG makes an image of Debian's static busybox with a
# small web server and pushes it to a registry by plain HTTP, with nothing but
# tar, curl and jq: an OCI image is a layer (a tar), a config and a manifest
# (two JSON files), each addressed by its SHA-256.
set -euo pipefail

reference=$1
host=${reference%%/*}
name=${reference#*/} tag=${name##*:} name=${name%:*}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

digest() { echo "sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
size() { stat -c %s "$1"; }

# The layer: busybox, a link for each of its commands, a page and a user table.
mkdir -p "$work"/rootfs/{bin,etc,tmp,www}
chmod 1777 "$work/rootfs/tmp"
cp /bin/busybox "$work/rootfs/bin/busybox"
for applet in $(/bin/busybox --list); do
  [[ -e $work/rootfs/bin/$applet ]] || ln -s busybox "$work/rootfs/bin/$applet"
done
printf 'root:x:0:0:root:/:/bin/sh\nwww:x:80:80:web:/www:/bin/sh\n' >"$work/rootfs/etc/passwd"
printf 'root:x:0:\nwww:x:80:\n' >"$work/rootfs/etc/group"
echo '<h1>Served from a pod on noded</h1>' >"$work/rootfs/www/index.html"
tar -C "$work/rootfs" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$work/layer.tar" .
gzip -n -k "$work/layer.tar"

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac
jq -n --arg arch "$arch" --arg diff "$(digest "$work/layer.tar")" '{
  architecture: $arch, os: "linux",
  config: {Env: ["PATH=/bin"], Cmd: ["/bin/httpd", "-f", "-v", "-p", "80", "-h", "/www"]},
  rootfs: {type: "layers", diff_ids: [$diff]}}' >"$work/config.json"
jq -n --arg config "$(digest "$work/config.json")" --argjson configSize "$(size "$work/config.json")" \
  --arg layer "$(digest "$work/layer.tar.gz")" --argjson layerSize "$(size "$work/layer.tar.gz")" '{
  schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
  config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $config, size: $configSize},
  layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", digest: $layer, size: $layerSize}]}' >"$work/manifest.json"

api=http://$host/v2/$name
for blob in layer.tar.gz config.json; do
  # The registry says in the answer's Location where it wants the bytes.
  location=$(curl -fsS -X POST -o /dev/null -D - "$api/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  [[ $location == http* ]] || location=http://$host$location
  case $location in *\?*) location+="&" ;; *) location+="?" ;; esac
  curl -fsS -X PUT -H 'Content-Type: application/octet-stream' --data-binary @"$work/$blob" \
    "${location}digest=$(digest "$work/$blob")"
done
curl -fsS -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @"$work/manifest.json" "$api/manifests/$tag"
echo "pushed $reference, $(size "$work/layer.tar.gz") bytes"
