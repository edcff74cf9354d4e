#!/usr/bin/env python3
"""Guest programs on every machine: the host itself, QEMU TCG, and Strata's engines.

guestbench (bench/guest) checks its own answers and times one unit of work of each
row. It runs on the host, and as process 1 of a guest with the same kernel,
initramfs, memory and processors under `qemu-system-x86_64 -accel tcg -cpu max`
and `strata run --engine ...`; smp.* with two processors, everything else with
one. Each machine takes its turn in every round; the fastest unit of all rounds
counts. A row is "wrong" where its checksum is not the host's.

usage: bench/guest.py [--quick] [--machines native,tcg,jit,interp,kvm] [--rows NAME|GROUP,...]
                      [--format text|markdown|json] [--save FILE.json] [--load FILE.json]
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import guest_image
import guest_report
import guest_run
from guest_run import Result

MEMORY = 1024  # MiB


def first_line(command: list[str | pathlib.Path]) -> str:
    """The first line of what a program prints, or why not."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as e:
        return f"unknown ({e})"


def describe(args: argparse.Namespace, qemu: str, kernel: pathlib.Path) -> dict[str, Any]:
    """What the figures were made on."""
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ")[1] for line in info if line.startswith("model name")), "unknown")
    here = pathlib.Path(__file__).resolve().parent
    name = kernel.parent / "description"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{processor}, {os.cpu_count()} processors",
        "host kernel": platform.release(),
        "guest": f"{name.read_text().split(' with ')[0].strip() if name.exists() else kernel}, {MEMORY} MiB",
        "strata": f"{first_line(['git', '-C', here, 'log', '-1', '--format=%h %s'])}; --cpu {args.model}",
        "QEMU": first_line([qemu, "--version"]) + "; -accel tcg -cpu max",
        "compiler": first_line(["gcc", "--version"]),
        "rounds": f"{args.rounds} of {args.seconds} s a row",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def choose_rows(listing: str, wanted: str) -> dict[int, list[str]]:
    """Processors -> rows, of those asked for."""
    out: dict[int, list[str]] = {1: [], 2: []}
    names = wanted.split(",") if wanted else []
    for line in listing.splitlines():
        row, cpus = line.split()
        if not names or row in names or row.split(".")[0] in names:
            out[int(cpus)].append(row)
    if not any(out.values()):
        sys.exit(f"no row or group is named {wanted!r}; guestbench --list shows them")
    return {cpus: rows for cpus, rows in out.items() if rows}


def measure(args: argparse.Namespace, folder: pathlib.Path) -> guest_report.Report:
    """Run everything."""
    guest_image.check_tools()
    qemu = shutil.which(args.qemu)
    wanted = args.machines.split(",")
    if "tcg" in wanted and not qemu:
        print(f"tcg: no {args.qemu} (apt-get install qemu-system-x86); left out", file=sys.stderr)
        wanted.remove("tcg")
    guestbench = guest_image.build(folder)
    kernel = guest_image.kernel()
    memory_folder = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory_folder if memory_folder.is_dir() else None) as scratch:
        known = guest_run.machines(
            guestbench, guest_image.strata_binary(), kernel, guest_image.initramfs(folder, guestbench),
            scratch=pathlib.Path(scratch), busybox=guest_image.BUSYBOX, qemu=qemu or args.qemu, memory=MEMORY,
            model=args.model)
        if unknown := set(wanted) - {m.name for m in known}:
            sys.exit(f"no machine is named {', '.join(sorted(unknown))}; known: {', '.join(m.name for m in known)}")
        machines = [m for m in known if m.name in wanted or m.name == "native"]
        listing = subprocess.run([guestbench, "--list"], capture_output=True, text=True, check=True).stdout
        about = describe(args, qemu or args.qemu, kernel)
        results: guest_report.Results = {m.name: {} for m in machines}
        start = time.monotonic()
        for _ in range(args.rounds):
            for machine in machines:
                for cpus, rows in choose_rows(listing, args.rows).items():
                    for row, result in guest_run.run(machine, rows, cpus, args.seconds).items():
                        results[machine.name].setdefault(row, Result()).merge(result)
        about["took"] = f"{time.monotonic() - start:.0f} s"
        about["load after"] = f"{os.getloadavg()[0]:.1f}"
    return guest_report.Report(results, about)


def load(path: pathlib.Path) -> guest_report.Report:
    """A report saved before."""
    saved = json.loads(path.read_text())
    results = {m: {n: Result(**r) for n, r in rows.items()} for m, rows in saved["results"].items()}
    return guest_report.Report(results, saved["about"])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--machines", default="native,tcg,jit", help="which, separated by commas [%(default)s]")
    p.add_argument("--rows", default="", help="rows or groups, separated by commas [all]")
    p.add_argument("--seconds", type=float, default=0.3, help="for each row in each round [%(default)s]")
    p.add_argument("--rounds", type=int, default=2, help="turns of each machine [%(default)s]")
    p.add_argument("--quick", action="store_true", help="one round of 0.1 s")
    p.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    p.add_argument("--save", type=pathlib.Path, help="write the results to this file as JSON")
    p.add_argument("--load", type=pathlib.Path, help="print results saved before instead of measuring")
    p.add_argument("--model", default="x86-64-v3", help="Strata's processor model [%(default)s]")
    p.add_argument("--qemu", default="qemu-system-x86_64", help="QEMU's program [%(default)s]")
    args = p.parse_args()
    if args.quick:
        args.seconds, args.rounds = 0.1, 1
    if args.load:
        report = load(args.load)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(args, pathlib.Path(folder))
    if args.save:
        args.save.write_text(json.dumps(report.json(), indent=1) + "\n")
    if args.format == "json":
        print(json.dumps(report.json(), indent=1))
    else:
        print(report.markdown() if args.format == "markdown" else report.text())


if __name__ == "__main__":
    main()
