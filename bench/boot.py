#!/usr/bin/env python3
"""Time from process start to the guest's shell: Strata's engines, QEMU TCG and Bochs.

Every machine gets the same kernel, initramfs and 512 MiB. A run ends when the
marker "strata: shell ready" appears on the serial port. Runs alternate between
the machines, so that a drifting host hits all alike; wall-clock and CPU seconds
are printed as minimum and median.

usage: bench/boot.py [--runs N] [--only strata-interp,strata-jit,qemu-tcg,bochs] [--json]
"""
import argparse
import json
import os
import pathlib
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKER = b"shell ready"
APPEND = "console=ttyS0"
LIMIT = 180.0


def guest_files():
    """The built-in guest's kernel and initramfs, fetched by strata itself if need be."""
    cache = pathlib.Path(os.environ.get("STRATA_CACHE") or
                         pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "strata")
    folder = cache / "cloud"
    if not (folder / "vmlinuz").exists():
        subprocess.run([strata(), "run", "--engine", "interp", "--timeout", "120", "--", "true"], check=True)
    initrds = sorted(folder.glob("initrd-*.cpio"), key=lambda p: p.stat().st_mtime)
    return folder / "vmlinuz", initrds[-1]


def strata():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    binary = pathlib.Path(os.environ.get("STRATA_BIN", target / "release" / "strata"))
    if not binary.exists():
        sys.exit(f"{binary} is missing; build it: cargo build --release --bin strata")
    return str(binary)


def iso(kernel, initrd, folder):
    """A CD image that boots the kernel with isolinux: Bochs has no -kernel."""
    tree = folder / "tree"
    (tree / "isolinux").mkdir(parents=True)
    shutil.copy(kernel, tree / "vmlinuz")
    shutil.copy(initrd, tree / "initrd")
    shutil.copy("/usr/lib/ISOLINUX/isolinux.bin", tree / "isolinux")
    shutil.copy("/usr/lib/syslinux/modules/bios/ldlinux.c32", tree / "isolinux")
    (tree / "isolinux/isolinux.cfg").write_text(
        f"default l\nprompt 0\ntimeout 1\nlabel l\n kernel /vmlinuz\n append initrd=/initrd {APPEND}\n")
    image = folder / "boot.iso"
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", image, "-b", "isolinux/isolinux.bin", "-c",
                    "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", tree],
                   check=True, stderr=subprocess.DEVNULL)
    return image


def machines(kernel, initrd, folder):
    """Name -> (command, serial file or None for standard output)."""
    out = {}
    for engine in ("jit", "interp"):
        out[f"strata-{engine}"] = ([strata(), "run", "--kernel", kernel, "--initrd", initrd, "--append", APPEND,
                                    "--memory", "512M", "--engine", engine], None)
    if shutil.which("qemu-system-x86_64"):
        out["qemu-tcg"] = (["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "512", "-kernel",
                            kernel, "-initrd", initrd, "-append", APPEND, "-display", "none", "-monitor", "none",
                            "-serial", "stdio"], None)
    else:
        print("qemu-tcg: no qemu-system-x86_64 (apt-get install qemu-system-x86)", file=sys.stderr)
    needed = ["/usr/bin/bochs", "/usr/bin/xorriso", "/usr/lib/ISOLINUX/isolinux.bin",
              "/usr/share/bochs/BIOS-bochs-latest", "/usr/lib/syslinux/modules/bios/ldlinux.c32"]
    missing = [n for n in needed if not os.path.exists(n)]
    if not missing:
        image = iso(kernel, initrd, folder)
        serial = folder / "bochs-serial"
        (folder / "bochsrc").write_text(f"""display_library: term
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
megs: 512
cpu: model=corei7_sandy_bridge_2600k, ips=100000000, reset_on_triple_fault=0
ata0-master: type=cdrom, path={image}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={serial}
log: {folder}/bochs.log
error: action=ignore
info: action=ignore
clock: sync=none, time0=utc
""")
        (folder / "continue").write_text("c\n")
        # Debian's Bochs waits at its debugger prompt and wants a terminal.
        out["bochs"] = (["script", "-qfc", f"bochs -q -f {folder}/bochsrc -rc {folder}/continue", "/dev/null"], serial)
    else:
        print(f"bochs: missing {', '.join(missing)}", file=sys.stderr)
    return out


def run(command, serial, marker=MARKER, limit=LIMIT):
    """Seconds of wall clock and CPU until the marker, or None."""
    if serial and serial.exists():
        serial.unlink()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    log = tempfile.TemporaryFile()
    process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=log,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    found = None
    while time.monotonic() - start < limit:
        if serial:
            data = serial.read_bytes() if serial.exists() else b""
        else:
            data = os.pread(log.fileno(), 1 << 20, 0)
        if marker in data:
            found = time.monotonic() - start
            break
        if process.poll() is not None:
            break
        time.sleep(0.005)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (found, cpu) if found else None


def arguments(doc, runs, only):
    """The command line of a benchmark that starts machines."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=runs)
    p.add_argument("--only", default=only)
    p.add_argument("--json", action="store_true")
    return p


def report(results, args, what):
    """Print what `run` answered for each machine; `what` is the marker's name."""
    rows = []
    for n, r in results.items():
        good = [x for x in r if x]
        if not good:
            print(f"{n}: never reached the {what}", file=sys.stderr)
            continue
        wall, cpu = [x[0] for x in good], [x[1] for x in good]
        rows.append({"machine": n, "runs": len(good), "failed": len(r) - len(good), "wall_min": min(wall),
                     "wall_median": statistics.median(wall), "cpu_min": min(cpu), "cpu_median": statistics.median(cpu)})
    if args.json:
        print(json.dumps(rows))
        return
    base = next((r["wall_min"] for r in rows if r["machine"] == "qemu-tcg"), None)
    print(f"{'machine':14} {'wall min':>9} {'median':>9} {'cpu min':>9} {'median':>9} {'to TCG':>8} {'failed':>7}")
    for r in rows:
        cpu = [f"{r[key]:.2f}s" if r[key] else "-" for key in ("cpu_min", "cpu_median")]
        ratio = f"{r['wall_min'] / base:.2f}x" if base else "-"
        print(f"{r['machine']:14} {r['wall_min']:8.2f}s {r['wall_median']:8.2f}s {cpu[0]:>9} {cpu[1]:>9} "
              f"{ratio:>8} {r['failed']:>7}")


def main():
    args = arguments(__doc__, 3, "").parse_args()
    kernel, initrd = guest_files()
    with tempfile.TemporaryDirectory() as name:
        todo = machines(kernel, initrd, pathlib.Path(name))
        if args.only:
            todo = {n: m for n, m in todo.items() if n in args.only.split(",")}
        results = {n: [] for n in todo}
        for _ in range(args.runs):
            for n, (command, serial) in todo.items():
                results[n].append(run(command, serial))
    report(results, args, "shell")


if __name__ == "__main__":
    main()
