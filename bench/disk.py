#!/usr/bin/env python3
"""A guest's disk on Strata's engines and on QEMU TCG: the same kernel, program and NVMe controller, in turns.

    bench/disk.py [--engines jit] [--rounds 3] [--seconds 3] [--format raw|qcow2] [--disk-options aio=io_uring]...

Prints a table: operations a second, the median of the rounds, and how many times QEMU's each engine's are. The image
lies in a temporary directory and is in the host's cache: what is measured is the way between guest and host.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile

import guest_image

SIZE = 256 << 20
LIMIT = 300
ATTEMPTS = 8
SOURCE = pathlib.Path(__file__).resolve().parent / "disk" / "io.c"


def make_image(folder: pathlib.Path, image_format: str) -> pathlib.Path:
    """A disk whose blocks are all there."""
    raw = folder / "disk.raw"
    with raw.open("wb") as file:
        for i in range(SIZE >> 20):
            file.write(bytes([i & 0xFF]) * (1 << 20))
    if image_format == "raw":
        return raw
    image = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-q", "-O", image_format, raw, image], check=True)
    return image


def run(command: list[str], limit: float) -> dict[str, float]:
    """Run a guest to its end: operations a second for each kind of access.

    Guests of QEMU 7.2 lose NVMe interrupts and then hang, most of them (QEMU 10's do not), so each gets several
    attempts, with a word of it: the runs that end are what is compared.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            output = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit, check=False)
            break
        except subprocess.TimeoutExpired:
            print(f"{command[0]} did not end within {limit:.0f} s, attempt {attempt}", file=sys.stderr)
            if attempt == ATTEMPTS:
                raise
    rows = {}
    for line in output.stdout.splitlines():
        words = line.split()
        if len(words) == 4 and words[0] == "disk:":
            rows[words[1]] = float(words[2])
    if not rows:
        raise SystemExit(f"{command[0]} measured nothing:\n{output.stdout[-2000:]}{output.stderr[-2000:]}")
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--engines", default="jit", help="Strata's engines, with commas between")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=3, help="for each kind of access")
    arguments.add_argument("--format", choices=["raw", "qcow2"], default="raw")
    arguments.add_argument("--disk-options", action="append", help="Strata's, after the format; repeat it to compare")
    arguments.add_argument("--qemu", default="qemu-system-x86_64")
    options = arguments.parse_args()
    guest_image.check_tools()
    strata, kernel = guest_image.strata_binary(), guest_image.kernel()
    append = f"console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests disk_seconds={options.seconds}"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        program = folder / "io"
        subprocess.run(["gcc", *guest_image.FLAGS, "-o", program, SOURCE], check=True)
        initrd = guest_image.initramfs(folder, program)
        image = make_image(folder, options.format)
        boot = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", append]
        machines = {
            "qemu-tcg": [options.qemu, "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "512", "-nographic",
                         "-no-reboot", *boot, "-drive", f"file={image},if=none,id=d,format={options.format}",
                         "-device", "nvme,drive=d,serial=bench"],
        }
        for engine in options.engines.split(","):
            for extra in options.disk_options or [""]:
                disk = ",".join(filter(None, [str(image), f"format={options.format}", extra]))
                machines[f"{engine} {extra}".strip()] = [
                    str(strata), "run", "--engine", engine, "--timeout", str(LIMIT),
                    *(f"-{word}" if word.startswith("-") else word for word in boot), "--disk", disk]
        results: dict[str, list[dict[str, float]]] = {machine: [] for machine in machines}
        for _ in range(options.rounds):
            for machine, command in machines.items():
                results[machine].append(run(command, 15 + 10 * options.seconds))
    print("| operations a second | " + " | ".join(machines) + " |")
    print("| --- |" + " ---: |" * len(machines))
    for kind in results["qemu-tcg"][0]:
        median = {m: statistics.median(r.get(kind, 0) for r in rounds) for m, rounds in results.items()}
        cells = [f"{median[m]:.0f}" + (f" ({median[m] / median['qemu-tcg']:.2f}x)" if m != "qemu-tcg" else "")
                 for m in machines]
        print(f"| {kind} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
