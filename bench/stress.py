#!/usr/bin/env python3
"""Boots of the stock kernel on a loaded host, and memory over many engine switches.

Each boot runs on one engine with 1, 2 and 4 vCPUs in turn while other processes
keep every host processor busy; with --switches the machine changes between the
two software engines at random moments. A boot counts when the guest sees all its
processors and its command's status comes back. With --leaks one machine changes
engines every quarter of a second while its guest computes; the process's memory is
printed after each tenth of the changes and must not grow by more than 4 MiB from
the second tenth on (the first fills caches). With --workloads the programs of
bench/guest run in machines that change engines at random moments, over and over for
so many minutes; every answer must be the host's, and descriptors must not become more
in a machine's second half. Memory is printed.

usage: bench/stress.py [--boots N] [--cpus 1,2,4] [--switches] [--load N] [--seed N] [--timeout S]
       bench/stress.py --leaks [--changes N]
       bench/stress.py --workloads MINUTES [--rows NAME|GROUP,...] [--seed N]
"""
import argparse
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time

import guest_image
import guest_run

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


def watch(pid, seen, stop):
    """Note time, memory and open descriptors of a process every two seconds."""
    start = time.monotonic()
    while not stop.wait(2):
        try:
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            seen.append((time.monotonic() - start, memory_kib(pid), descriptors))
        except (OSError, TypeError):
            return


def workload_run(args, files, rows, cpus, rng):
    """One machine with engine changes: (its lines, samples of the process, changes)."""
    plan, at, engine = [], 500, "jit"
    while at < args.timeout * 1000:
        engine = "interp" if engine == "jit" else "jit"
        plan += ["--switch", f"{at}ms:{engine}"]
        # Most of the time on jit: the interpreter takes fifty times as long.
        at += rng.randint(20, 400) if engine == "interp" else rng.randint(20, 1500)
    append = f"console=ttyS0 quiet panic=-1 bench_seconds=0.3 bench={','.join(rows)}"
    command = [strata(), "run", "--engine", "jit", "--cpu", "x86-64-v3", "--memory", "512M", "--cpus", str(cpus),
               "--kernel", str(files["kernel"]), "--initrd", str(files["initrd"]), "--append", append,
               "--timeout", f"{args.timeout}s", "--no-reboot", *plan]
    samples, stop = [], threading.Event()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, errors="replace") as process:
        watcher = threading.Thread(target=watch, args=(process.pid, samples, stop))
        watcher.start()
        out, errors = process.communicate()
        stop.set()
        watcher.join()
    return out.splitlines(), samples, errors.count("continued on engine")


def judge(rows, lines, native, samples):
    """What was wrong with a run: a list of texts."""
    wrong, answers = [], {}
    for line in lines:
        line = line.strip("\r\n\0 ")
        if found := guest_run.DONE.search(line):
            answers[found[1]] = found[4]
        elif found := guest_run.PROBLEM.search(line):
            wrong.append(line)
    for row in rows:
        if row not in answers:
            wrong.append(f"{row}: no answer")
        elif native[row] != answers[row]:
            wrong.append(f"{row}: {answers[row]}, the host {native[row]}")
    half = len(samples) // 2
    early, late = (max((d for _, _, d in part), default=0) for part in (samples[:half], samples[half:]))
    if half >= 3 and late > early:
        wrong.append(f"descriptors: {early}, later {late}")
    return wrong


def workloads(args):
    rng, failed, runs, changes, answers = random.Random(args.seed), 0, 0, 0, 0
    end = time.monotonic() + args.workloads * 60
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        guest_image.check_tools()
        program = guest_image.build(folder)
        files = {"kernel": guest_image.kernel(), "initrd": guest_image.initramfs(folder, program)}
        listing = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
        wanted = args.rows.split(",") if args.rows else []
        known = [line.split() for line in listing.splitlines()]
        known = [(row, int(cpus)) for row, cpus in known
                 if not wanted or row in wanted or row.split(".")[0] in wanted]
        host = guest_run.Machine("native", lambda rows, _, seconds: [
            str(program), "--seconds", str(seconds), "--scratch", name, "--busybox", str(guest_image.BUSYBOX),
            ",".join(rows)], boots=False)
        native = {row: r.checksum for row, r in guest_run.run(host, [r for r, _ in known], 1, 0.01).items()}
        while time.monotonic() < end:
            # Some rows, in any order.
            cpus = rng.choice([cpus for _, cpus in known])
            rows = [row for row, least in known if least <= cpus and native[row]]
            rows = rng.sample(rows, min(len(rows), 24))
            lines, samples, count = workload_run(args, files, rows, cpus, rng)
            wrong = judge(rows, lines, native, samples)
            runs, changes, answers = runs + 1, changes + count, answers + len(rows)
            failed += bool(wrong)
            most = [max(part, default=(0, 0, 0)) for part in (
                [(m, d) for _, m, d in samples[:len(samples) // 2]], [(m, d) for _, m, d in samples[len(samples) // 2:]])]
            print(f"{cpus} cpus, {len(rows)} rows, {count} changes; most KiB resident and descriptors in its first "
                  f"and second half: {most[0]}, {most[1]}", *wrong, sep="\n  ", flush=True)
            if wrong:
                print("  " + "\n  ".join(lines[-8:]), flush=True)
    print(f"{runs} machines, {changes} changes of engine, {answers} answers, {failed} machines with a difference")
    return failed


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
    parser.add_argument("--workloads", type=float, metavar="MINUTES")
    parser.add_argument("--rows", default="")
    args = parser.parse_args()
    run = workloads if args.workloads else leaks if args.leaks else boots
    sys.exit(1 if run(args) else 0)


if __name__ == "__main__":
    main()
