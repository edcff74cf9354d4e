#!/bin/sh
# QEMU 10 beside the host's own: unpack Debian 13's package into a folder, with a wrapper that runs it there.
#
#   bench/qemu10.sh FOLDER && PATH="FOLDER/bin:$PATH" bench/guest.py
#
# Needs mmdebstrap (apt-get install mmdebstrap) and 170 MiB; nothing is installed, nothing outside the folder changes.
set -eu
[ $# -eq 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
command -v mmdebstrap >/dev/null || { echo "mmdebstrap is missing: apt-get install mmdebstrap" >&2; exit 1; }
mkdir -p "$1/bin"
folder=$(cd "$1" && pwd)
[ -e "$folder/root/usr/bin/qemu-system-x86_64" ] ||
    mmdebstrap --quiet --variant=extract --include=qemu-system-x86,seabios,ipxe-qemu trixie "$folder/root"
# QEMU also looks for modules where the host's own are, and ends when it finds them: they are hidden from it.
cat >"$folder/bin/qemu-system-x86_64" <<END
#!/bin/sh
root='$folder/root/usr'
modules=lib/x86_64-linux-gnu/qemu
if [ -d "/usr/\$modules" ] && [ -z "\${QEMU_MODULES_HIDDEN:-}" ]; then
    QEMU_MODULES_HIDDEN=1
    export QEMU_MODULES_HIDDEN
    exec unshare --map-root-user --mount sh -c 'mount --bind "\$0" "/usr/\$1" && shift && exec "\$@"' \\
        "\$root/\$modules" "\$modules" "\$0" "\$@"
fi
exec "\$root/lib64/ld-linux-x86-64.so.2" --library-path "\$root/lib/x86_64-linux-gnu" "\$root/bin/qemu-system-x86_64" \\
    -L "\$root/share/qemu" -L "\$root/share/seabios" "\$@"
END
chmod +x "$folder/bin/qemu-system-x86_64"
"$folder/bin/qemu-system-x86_64" --version
