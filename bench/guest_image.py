"""Build guestbench and the initramfs that runs it as a guest's process 1."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE / "guest"
FLAGS = ["-O2", "-static", "-march=x86-64-v2", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-pthread"]
LIBRARY = pathlib.Path("/usr/lib/x86_64-linux-gnu/libc.a")
BUSYBOX = pathlib.Path("/bin/busybox")


def check_tools() -> None:
    """End with what to install if something is missing."""
    missing = []
    if not shutil.which("gcc"):
        missing.append("gcc")
    if not LIBRARY.exists():
        missing.append("libc6-dev")
    if not BUSYBOX.exists():
        missing.append("busybox-static")
    if missing:
        sys.exit(f"missing tools; install them: apt-get install {' '.join(missing)}")
    if b"INTERP" in subprocess.run(["readelf", "-l", BUSYBOX], capture_output=True, check=False).stdout:
        sys.exit(f"{BUSYBOX} is not static; install the static one: apt-get install busybox-static")


def build(folder: pathlib.Path) -> pathlib.Path:
    """Compile guestbench into the folder."""
    binary = folder / "guestbench"
    subprocess.run(["gcc", *FLAGS, "-o", binary, *sorted(SOURCES.glob("*.c")), "-lm"], check=True)
    return binary


def _entry(number: int, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of a "newc" archive: header, name, content, each padded to 4 bytes."""
    path = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0]
    head = b"070701" + b"".join(b"%08x" % f for f in fields) + path
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def initramfs(folder: pathlib.Path, guestbench: pathlib.Path) -> pathlib.Path:
    """An initramfs with guestbench as /init, busybox, and the console the kernel opens for it."""
    members: list[tuple[str, int, bytes, tuple[int, int]]] = [
        *((name, stat.S_IFDIR | 0o755, b"", (0, 0)) for name in ("bin", "dev", "proc", "sys", "tmp")),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("bin/busybox", stat.S_IFREG | 0o755, BUSYBOX.read_bytes(), (0, 0)),
        ("init", stat.S_IFREG | 0o755, guestbench.read_bytes(), (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]
    image = folder / "guestbench.cpio"
    image.write_bytes(b"".join(_entry(i + 1, *member) for i, member in enumerate(members)))
    return image


def strata_binary() -> pathlib.Path:
    """The release build, or what STRATA_BIN names."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    binary = pathlib.Path(os.environ.get("STRATA_BIN", target / "release" / "strata"))
    if not binary.exists():
        sys.exit(f"{binary} is missing; build it: cargo build --release --bin strata")
    return binary


def kernel() -> pathlib.Path:
    """The built-in guest's kernel, fetched by strata itself if need be."""
    cache = os.environ.get("STRATA_CACHE")
    if not cache:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        cache = str(pathlib.Path(home) / "strata")
    image = pathlib.Path(cache) / "cloud" / "vmlinuz"
    if not image.exists():
        subprocess.run([strata_binary(), "run", "--engine", "interp", "--timeout", "120", "--", "true"], check=True)
    return image
