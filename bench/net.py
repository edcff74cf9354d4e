#!/usr/bin/env python3
"""TCP between guest and host by iperf3: Strata's NAT against QEMU TCG's user network.

Every machine gets the same kernel, initramfs, iperf3 (this host's own program with
its libraries, packed into a second initramfs) and 1 GiB. The guest takes its address
by DHCP and speaks to one iperf3 server at 10.0.2.2, first sending, then receiving.
Runs alternate between the machines; Gbit/s are printed as maximum and median.

usage: bench/net.py [--runs N] [--seconds S] [--only strata-jit,strata-interp,qemu-tcg] [--json]
"""
import argparse
import base64
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile

import boot

LIMIT = 300
SCRIPT = """
printf '#!/bin/sh\\n[ $1 = bound ] && { ip a add $ip/$mask dev $interface; ip r add default via $router; }\\nexit 0\\n' > /d
chmod +x /d; ip link set lo up; ip link set eth0 up; udhcpc -q -n -i eth0 -s /d > /dev/null
for way in "" -R; do iperf3 -c 10.0.2.2 -p %d -t %d $way -f m | grep -E 'sender|receiver|error'; done
"""


def programs(folder):
    """An initramfs of iperf3 and the libraries it is linked with."""
    binary = shutil.which("iperf3") or sys.exit("iperf3 is missing: apt-get install iperf3")
    tree = folder / "tree"
    text = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    for path in [binary, *re.findall(r"(/\S+) \(", text)]:
        place = tree / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    names = sorted(str(p.relative_to(tree)) for p in tree.rglob("*"))
    return subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input="\n".join(names).encode(), cwd=tree,
                          capture_output=True, check=True).stdout


def machines(kernel, initrd, append):
    """Name -> command."""
    out = {}
    for engine in ("jit", "interp"):
        out[f"strata-{engine}"] = [boot.strata(), "run", "--kernel", kernel, "--initrd", initrd, "--append", append,
                                   "--memory", "1G", "--engine", engine, "--network", "nat"]
    if shutil.which("qemu-system-x86_64"):
        out["qemu-tcg"] = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "1024", "-kernel",
                           kernel, "-initrd", initrd, "-append", append, "-display", "none", "-monitor", "none",
                           "-serial", "stdio", "-no-reboot", "-netdev", "user,id=n", "-device",
                           "virtio-net-pci,netdev=n,disable-legacy=on"]
    else:
        print("qemu-tcg: no qemu-system-x86_64 (apt-get install qemu-system-x86)", file=sys.stderr)
    return out


def run(command):
    """Gbit/s of sending and receiving, as the receiving side counted, or None."""
    done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
    text = done.stdout.decode(errors="replace")
    rates = re.findall(r"([\d.]+) Mbits/sec.*receiver", text)
    if len(rates) != 2:
        print(text[-2000:], done.stderr.decode(errors="replace")[-500:], file=sys.stderr)
        return None
    return [float(r) / 1000 for r in rates]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=2)
    p.add_argument("--seconds", type=int, default=5)
    p.add_argument("--only", default="")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    kernel, initrd = boot.guest_files()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    script = base64.b64encode((SCRIPT % (port, args.seconds)).encode()).decode()
    append = f"console=ttyS0 quiet mitigations=off panic=-1 strata.cmd={script}"
    server = subprocess.Popen(["iperf3", "-s", "-B", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            both = folder / "initrd"
            first = pathlib.Path(initrd).read_bytes()
            both.write_bytes(first + b"\0" * (-len(first) % 4) + programs(folder))
            todo = machines(kernel, both, append)
            if args.only:
                todo = {n: m for n, m in todo.items() if n in args.only.split(",")}
            results = {n: [] for n in todo}
            for _ in range(args.runs):
                for n, command in todo.items():
                    results[n].append(run(command))
    finally:
        server.terminate()
    rows = []
    for n, r in results.items():
        good = [x for x in r if x]
        if not good:
            print(f"{n}: no figures", file=sys.stderr)
            continue
        sending, receiving = zip(*good)
        rows.append({"machine": n, "runs": len(good), "send_max": max(sending), "send_median": statistics.median(sending),
                     "receive_max": max(receiving), "receive_median": statistics.median(receiving)})
    if args.json:
        print(json.dumps(rows))
        return
    base = next((r for r in rows if r["machine"] == "qemu-tcg"), None)
    print(f"{'Gbit/s':14} {'sends':>7} {'median':>7} {'to TCG':>7} {'gets':>9} {'median':>7} {'to TCG':>7}")
    for r in rows:
        ratio = [f"{r[k] / base[k]:.2f}x" if base else "-" for k in ("send_max", "receive_max")]
        print(f"{r['machine']:14} {r['send_max']:7.2f} {r['send_median']:7.2f} {ratio[0]:>7} {r['receive_max']:9.2f} "
              f"{r['receive_median']:7.2f} {ratio[1]:>7}")


if __name__ == "__main__":
    main()
