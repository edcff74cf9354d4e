#!/usr/bin/env python3
"""Integer loops: each engine's million instructions a second against the processor's own.

Runs `strata demo`, whose guest counts a compute loop in rings 0 and 3. KVM runs
ring 3 on the processor itself even where it emulates ring 0, so its figure is
the native one; without KVM there is nothing to compare with.

usage: bench/loops.py
"""
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = pathlib.Path(os.environ.get("STRATA_BIN", TARGET / "release" / "strata"))

if not BINARY.exists():
    sys.exit(f"{BINARY} is missing; build it: cargo build --release --bin strata")
rows = json.loads(subprocess.run([BINARY, "demo", "--format", "json"], check=True, capture_output=True).stdout)
native = next((r["ring3_mips"] for r in rows if r["engine"] == "kvm" and r["ok"]), None)
print(f"{'engine':8} {'MIPS':>8} {'native is':>10}")
for r in rows:
    ratio = f"{native / r['ring3_mips']:.1f}x" if native else "unknown"
    print(f"{r['engine']:8} {r['ring3_mips']:8.0f} {ratio:>10}")
