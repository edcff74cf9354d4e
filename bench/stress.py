#!/usr/bin/env python3
"""Boots of the stock kernel on a loaded host, and memory over many engine switches.

Each boot runs on one engine with 1, 2 and 4 vCPUs in turn while other processes
keep every host processor busy; with --switches the machine changes between the
two software engines at random moments. A boot counts when the guest sees all its
processors and its command's status comes back. With --leaks one machine changes
engines every quarter of a second while its guest computes; the process's memory is
printed after each tenth of the changes and must not grow by more than 4 MiB from
the second tenth on (the first fills caches).

usage: bench/stress.py [--boots N] [--cpus 1,2,4] [--switches] [--load N] [--seed N] [--timeout S]
       bench/stress.py --leaks [--changes N]
"""
import argparse
import os
import pathlib
import random
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STATUS = 42
GROWTH_KIB = 4096


def strata():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    binary = pathlib.Path(os.environ.get("STRATA_BIN", target / "release" / "strata"))
    if not binary.exists():
        sys.exit(f"{binary} is missing; build it: cargo build --release --bin strata")
    return str(binary)


def burner():
    """A process that keeps one host processor busy until it is killed."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def switches(rng):
    """Up to six changes of engine within the time a boot takes."""
    at, engine, arguments = 0, "jit", []
    for _ in range(rng.randint(1, 6)):
        at += rng.randint(50, 2500)
        engine = "interp" if engine == "jit" else "jit"
        arguments += ["--switch", f"{at}ms:{engine}"]
    return arguments


def boot(cpus, arguments, timeout):
    """(seconds, what went wrong or None)"""
    command = [strata(), "run", "--engine", "jit", "--cpus", str(cpus), "--timeout", f"{timeout}s", *arguments,
               "--", f"test $(nproc) = {cpus} && exit {STATUS}"]
    start = time.monotonic()
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    took = time.monotonic() - start
    if run.returncode == STATUS:
        return took, None
    tail = "\n".join((run.stdout + run.stderr).splitlines()[-12:])
    return took, f"status {run.returncode}: {' '.join(command[1:])}\n{tail}"


def boots(args):
    rng = random.Random(args.seed)
    burners = [burner() for _ in range(args.load)]
    failed = 0
    try:
        for cpus in args.cpus:
            good, slowest = 0, 0.0
            for _ in range(args.boots):
                arguments = switches(rng) if args.switches else []
                took, wrong = boot(cpus, arguments, args.timeout)
                slowest = max(slowest, took)
                good += wrong is None
                if wrong:
                    print(f"cpus {cpus}: {wrong}", flush=True)
            failed += args.boots - good
            print(f"cpus {cpus}: {good} of {args.boots} boots, slowest {slowest:.1f} s", flush=True)
    finally:
        for b in burners:
            b.kill()
    return failed


def memory_kib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def leaks(args):
    first = 6000
    plan = []
    for n in range(args.changes):
        plan += ["--switch", f"{first + 250 * n}ms:{'interp' if n % 2 == 0 else 'jit'}"]
    seconds = (first + 250 * args.changes) // 1000 + 30
    command = [strata(), "run", "--engine", "jit", "--timeout", f"{seconds}s", *plan,
               "--", "i=0; while true; do i=$((i+1)); done"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    done, seen = 0, []
    try:
        for line in process.stderr:
            if "continued on engine" not in line:
                continue
            done += 1
            if done % max(1, args.changes // 10) == 0:
                seen.append(memory_kib(process.pid))
                print(f"{done} changes: {seen[-1] / 1024:.1f} MiB", flush=True)
            if done == args.changes:
                break
    finally:
        process.kill()
        process.wait()
    if len(seen) < 3:
        print(f"only {done} of {args.changes} changes happened")
        return 1
    return int(max(seen[2:]) - seen[1] > GROWTH_KIB)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boots", type=int, default=34)
    parser.add_argument("--cpus", type=lambda s: [int(n) for n in s.split(",")], default=[1, 2, 4])
    parser.add_argument("--switches", action="store_true")
    parser.add_argument("--load", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=180)
    parser.add_argument("--leaks", action="store_true")
    parser.add_argument("--changes", type=int, default=100)
    args = parser.parse_args()
    sys.exit(1 if (leaks(args) if args.leaks else boots(args)) else 0)


if __name__ == "__main__":
    main()
