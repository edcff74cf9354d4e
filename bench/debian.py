#!/usr/bin/env python3
"""Time from process start to a whole Debian's login prompt: Strata's engines and QEMU TCG.

Every machine gets the image's kernel and command line, a copy of its disk behind an
NVMe controller, a virtio network card with user-mode network, one vCPU and 1 GiB. A
run ends when "login: " appears on the serial port. Runs alternate between the
machines, so that a drifting host hits all alike; wall-clock and CPU seconds are
printed as minimum and median.

usage: bench/debian.py [--runs N] [--image NAME] [--only strata-jit,strata-interp,qemu-tcg] [--json]
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import boot

MARKER = b" login: "
LIMIT = 1200.0


def image(name):
    """Kernel, command line and disk of an image, which is built at first use."""
    inspect = [boot.strata(), "image", "inspect", name]
    text = subprocess.run(inspect, capture_output=True, text=True, check=False).stdout
    if not text:
        subprocess.run([boot.strata(), "image", "build", "debian", "--name", name], check=True)
        text = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
    about = json.loads(text)
    cache = pathlib.Path(os.environ.get("STRATA_CACHE") or
                         pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "strata")
    blob = {part: cache / "images" / "blobs" / about[part]["digest"] for part in ("kernel", "disk")}
    return blob["kernel"], about["cmdline"], blob["disk"]


def machines(kernel, append, disk):
    """Name -> command."""
    out = {}
    for engine in ("jit", "interp"):
        out[f"strata-{engine}"] = [boot.strata(), "run", "--kernel", kernel, "--append", append, "--memory", "1G",
                                   "--engine", engine, "--network", "nat", "--disk", f"{disk},if=nvme,format=raw"]
    if shutil.which("qemu-system-x86_64"):
        out["qemu-tcg"] = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "1024", "-kernel",
                           kernel, "-append", append, "-display", "none", "-monitor", "none", "-serial", "stdio",
                           "-no-reboot", "-drive", f"file={disk},format=raw,if=none,id=d", "-device",
                           "nvme,drive=d,serial=root", "-netdev", "user,id=n", "-device",
                           "virtio-net-pci,netdev=n,disable-legacy=on"]
    else:
        print("qemu-tcg: no qemu-system-x86_64 (apt-get install qemu-system-x86)", file=sys.stderr)
    return out


def main():
    p = boot.arguments(__doc__, 2, "strata-jit,qemu-tcg")
    p.add_argument("--image", default="debian")
    args = p.parse_args()
    kernel, append, disk = image(args.image)
    with tempfile.TemporaryDirectory() as name:
        copy = pathlib.Path(name) / "disk"
        todo = {n: m for n, m in machines(kernel, append, copy).items() if n in args.only.split(",")}
        results = {n: [] for n in todo}
        for _ in range(args.runs):
            for n, command in todo.items():
                # Each run is a machine's first.
                subprocess.run(["cp", "--sparse=always", "--no-preserve=mode", disk, copy], check=True)
                results[n].append(boot.run(command, None, MARKER, LIMIT))
    boot.report(results, args, "login prompt")


if __name__ == "__main__":
    main()
