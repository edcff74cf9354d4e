"""Run guestbench on the host and in guests, with a host time stamp for every line."""

import contextlib
import dataclasses
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

SILENCE = 80.0  # Seconds without a line after which a machine hangs; guestbench ends a row after 60.
BOOT = 120.0  # Seconds to the first line of guestbench.
RESTARTS = 6  # Boots after a hang before the remaining rows are given up.
BEGIN = re.compile(r"guestbench: begin (\S+)")
DONE = re.compile(r"(\w+\.\w+) ([0-9.]+) (\d+) ([0-9a-f]{16}) (\d+)$")
PROBLEM = re.compile(r"(\w+\.\w+) (skipped|failed): (.*)")


@dataclasses.dataclass
class Result:
    """What one machine answered for one row, the best of its rounds."""

    ns: float = 0.0
    units: int = 0
    checksum: str = ""
    problem: str = ""
    """Why there is no time; empty if there is one."""
    drift: float = 0.0
    """How far the machine's clock was from the host's, as a share of the host's time; the worst round's."""

    def merge(self, other: "Result") -> None:
        """Take in another round: the faster time, the worse problem."""
        if other.problem:
            self.problem = self.problem or other.problem
            return
        if self.checksum and self.checksum != other.checksum:
            self.problem = "failed: rounds answered differently"
        if not self.ns or other.ns < self.ns:
            self.ns, self.units = other.ns, other.units
        self.checksum = other.checksum
        self.drift = max(self.drift, other.drift, key=abs)


@dataclasses.dataclass
class Machine:
    """Where guestbench runs: a command for these rows on so many processors, for so long each."""

    name: str
    command: Callable[[list[str], int, float], list[str]]
    boots: bool = True


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:40}\r", end="", file=sys.stderr, flush=True)


def _lines(process: subprocess.Popen[bytes]) -> Iterator[tuple[float, str] | None]:
    """Each line with its time of arrival; None where the machine stays silent for too long."""
    assert process.stdout is not None
    pending, limit = b"", BOOT
    while True:
        ready, _, _ = select.select([process.stdout], [], [], limit)
        if not ready:
            yield None
            return
        data = os.read(process.stdout.fileno(), 65536)
        now = time.monotonic()
        if not data:
            return
        pending += data
        *whole, pending = pending.split(b"\n")
        for line in whole:
            limit = SILENCE
            yield now, line.decode(errors="replace").strip("\r\n\0 ")


def _run_once(machine: Machine, rows: list[str], cpus: int, seconds: float) -> tuple[dict[str, Result], str]:
    """Results of one start, and why it ended early (empty if it did not)."""
    out: dict[str, Result] = {}
    command = machine.command(rows, cpus, seconds)
    began: dict[str, float] = {}
    last, why = "", ""
    log: list[str] = []
    with (tempfile.TemporaryFile() as messages,
          subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages,
                           process_group=0) as process):
        for item in _lines(process):
            if item is None:
                why = "failed: hung"
                break
            now, line = item
            log.append(line)
            if found := BEGIN.search(line):
                last = found[1]
                began[last] = now
                _progress(f"{machine.name}: {last}")
            elif found := DONE.search(line):
                result = Result(ns=float(found[2]), units=int(found[3]), checksum=found[4])
                host = now - began.get(found[1], now)
                # The guest's time leaves out the start and end of a process, and the lines' way to here: 50 ms
                # cover both. On the host there is only one clock.
                if machine.boots and abs(int(found[5]) / 1e9 - host) > 0.05 < host:
                    result.drift = int(found[5]) / 1e9 / host - 1
                out[found[1]] = result
            elif found := PROBLEM.search(line):
                out[found[1]] = Result(problem=f"{found[2]}: {found[3]}")
            elif "guestbench: end" in line:
                break
        if not why and machine.boots:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        messages.seek(0)
        log += messages.read().decode(errors="replace").splitlines()[-5:]
    if last and last not in out:
        out[last] = Result(problem=why or f"failed: the machine ended (status {process.returncode})")
    elif not out:
        why = why or f"failed: the machine ended (status {process.returncode})"
        print(f"\n{machine.name}: {why}; last lines:", *log[-8:], sep="\n  ", file=sys.stderr)
    return out, why


def run(machine: Machine, rows: list[str], cpus: int, seconds: float) -> dict[str, Result]:
    """Results of all rows; after a hang or crash the rest runs in a new start."""
    out: dict[str, Result] = {}
    for _ in range(RESTARTS):
        todo = [r for r in rows if r not in out]
        if not todo:
            break
        results, why = _run_once(machine, todo, cpus, seconds)
        out |= results
        if not results:
            out |= {r: Result(problem=why) for r in todo}
    _progress("")
    return out | {r: Result(problem="failed: given up after crashes") for r in rows if r not in out}


def machines(guestbench: pathlib.Path, strata: pathlib.Path, kernel: pathlib.Path, initrd: pathlib.Path, *,
             scratch: pathlib.Path, busybox: pathlib.Path, qemu: str, memory: int, model: str) -> list[Machine]:
    """All machines that this script knows, native first."""

    def native(rows: list[str], _cpus: int, seconds: float) -> list[str]:
        return [str(guestbench), "--seconds", str(seconds), "--scratch", str(scratch), "--busybox", str(busybox),
                ",".join(rows)]

    def append(rows: list[str], seconds: float) -> str:
        return f"console=ttyS0 quiet panic=-1 bench_seconds={seconds} bench={','.join(rows)}"

    def tcg(rows: list[str], cpus: int, seconds: float) -> list[str]:
        return [qemu, "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", str(memory), "-smp", str(cpus), "-kernel",
                str(kernel), "-initrd", str(initrd), "-append", append(rows, seconds), "-display", "none", "-monitor",
                "none", "-serial", "stdio", "-no-reboot"]

    def on(engine: str) -> Machine:
        def command(rows: list[str], cpus: int, seconds: float) -> list[str]:
            return [str(strata), "run", "--engine", engine, "--cpu", model, "--memory", f"{memory}M", "--cpus",
                    str(cpus), "--kernel", str(kernel), "--initrd", str(initrd), "--append", append(rows, seconds),
                    "--no-reboot"]
        return Machine(engine, command)

    return [Machine("native", native, boots=False), Machine("tcg", tcg), on("jit"), on("interp"), on("kvm")]
