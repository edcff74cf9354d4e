"""From results to the table: slowdowns, geometric means, what must be reached, what is missed."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from guest_run import Result

# Slowdown against native that a row must reach, and the aim. None: not judged (noisy, or made for another row).
ROWS: dict[str, tuple[float, float] | None] = {
    "int.sieve": (1.5, 1.2), "int.sort": (1.5, 1.25), "int.hash": (1.35, 1.15), "int.bsearch": (1.4, 1.2),
    "int.div": (1.1, 1.05), "int.adc": (1.9, 1.4), "int.lz": (1.5, 1.25),
    "mem.chase_l1": (2.5, 1.3), "mem.chase_l2": (1.4, 1.1), "mem.chase_tlb": (1.7, 1.3), "mem.chase_mem": None,
    "mem.copy_u64": (3.4, 1.8), "mem.copy_sse2": (2.8, 1.6), "mem.rep_movs": (1.4, 1.1), "mem.rep_stos": (1.4, 1.1),
    "mem.libc": (2.5, 1.5),
    "fp.nbody": (1.9, 1.3), "fp.mandel": (1.15, 1.05), "fp.x87": (1.3, 1.05), "fp.x87trans": (1.2, 1.05),
    "vec.matmul_ps": (2.5, 1.5), "vec.sse2int": (1.7, 1.2), "vec.avx2int": (1.7, 1.25),
    "cry.sha256": (1.7, 1.15), "cry.shani": None, "cry.aes_table": (2.3, 1.5), "cry.aesni": (2.1, 1.4),
    "ctl.switch": (2.3, 1.6), "ctl.threaded": (2.0, 1.5), "ctl.fib": (3.2, 1.8), "ctl.tak": (2.4, 1.5),
    "ctl.icall_rand": (2.2, 1.6), "ctl.icall_mono": (2.2, 1.6), "ctl.atomic": (1.1, 0.4),
    "jit.smc_patch": (15.0, 6.0), "jit.smc_data": (20.0, 8.0), "jit.cold_code": (90.0, 30.0),
    "sys.getppid": (2.5, 1.6), "sys.read_zero": (2.5, 1.6), "sys.clock": (2.0, 1.3), "sys.signal": (4.0, 2.2),
    "time.sleep50us": (1.3, 1.1),
    "mm.pf_anon": (3.0, 1.8), "mm.pf_file": (4.0, 2.0), "mm.mprotect": (2.5, 1.3), "mm.segv": (3.0, 1.6),
    "proc.pingpong": (5.0, 2.5), "proc.futex": (2.5, 1.6), "proc.fork": (5.0, 2.5), "proc.forkexec": (2.0, 1.3),
    "file.meta": (3.5, 2.0), "file.bw": (2.5, 1.4), "file.pipe": (3.0, 1.5),
    "app.gzip": (1.7, 1.3), "app.sort": (2.8, 1.7), "app.awk": (3.2, 1.8), "app.sh": (3.2, 1.8),
    "app.spawn": (2.5, 1.6),
    "smp.one": None, "smp.scale": (1.2, 1.1), "smp.line": (1.3, 1.1), "smp.atomic": (1.3, 1.1),
    "smp.mp_litmus": (3.0, 1.5), "smp.shootdown": (6.0, 3.0),
}
# The same for the geometric mean of a group.
GROUPS: dict[str, tuple[float, float]] = {
    "int": (1.5, 1.2), "mem": (2.0, 1.35), "fp": (1.4, 1.1), "vec": (1.95, 1.3), "cry": (2.0, 1.35),
    "ctl": (2.1, 1.3), "jit": (30.0, 11.0), "sys": (2.7, 1.65), "time": (1.3, 1.1), "mm": (3.1, 1.65),
    "proc": (3.3, 1.9), "file": (3.0, 1.6), "app": (2.6, 1.6), "smp": (2.1, 1.4),
}
OVERALL = (2.45, 1.6)
AS_FAST_AS_TCG = (4.2, 6.5)  # How many times TCG's speed, over all rows.
MAY_DROP_LOCK = "ctl.atomic"  # Exempt from "no row slower than TCG": TCG drops LOCK on a lone processor.
SHOOTDOWNS = 20  # In a unit of smp.shootdown.
DRIFT = 0.1

Results = dict[str, dict[str, Result]]
"""Machine, row, result."""


def mean(values: Iterable[float | None]) -> float | None:
    """Geometric mean of those that exist."""
    known = [math.log(v) for v in values if v]
    return math.exp(sum(known) / len(known)) if known else None


@dataclasses.dataclass
class Row:
    """A line of the table: a benchmark, a group or all."""

    name: str
    native: float | None
    slowdown: dict[str, float | None]
    bar: tuple[float, float] | None
    notes: list[str]

    def to_tcg(self, machine: str) -> float | None:
        """How many times TCG's speed."""
        ours, tcg = self.slowdown.get(machine), self.slowdown.get("tcg")
        return tcg / ours if ours and tcg else None

    def verdict(self, machine: str) -> str:
        """Against the bar."""
        ours = self.slowdown.get(machine)
        if not ours or not self.bar:
            return ""
        must, aim = self.bar
        return "aim" if ours <= aim else "ok" if ours <= must else f"MISSES by {ours / must:.1f}"


def _notes(name: str, results: Results) -> list[str]:
    notes = []
    native = results["native"].get(name, Result(problem="failed: not run"))
    for machine, rows in results.items():
        r = rows.get(name, Result(problem="failed: not run"))
        if r.problem:
            notes.append(f"{machine} {r.problem}")
        elif not native.problem and r.checksum != native.checksum:
            notes.append(f"{machine} WRONG: {r.checksum} instead of {native.checksum}")
        if abs(r.drift) > DRIFT:
            notes.append(f"{machine} clock off by {r.drift:+.0%}")
    return notes


def ratio(value: float | None) -> str:
    """Three digits."""
    if not value:
        return "-"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


class Report:
    """The table of one run."""

    def __init__(self, results: Results, about: dict[str, Any]) -> None:
        self.results, self.about = results, about
        self.machines = [m for m in results if m != "native"]
        self.rows = [self._row(n) for n in ROWS if n in results["native"]]
        self.groups = [g for g in (self._group(name) for name in GROUPS) if g]
        judged = [r for r in self.rows if ROWS[r.name]]
        self.overall = self._mean("all", judged, OVERALL)

    def _row(self, name: str) -> Row:
        native = self.results["native"][name]
        slowdown: dict[str, float | None] = {}
        for m in self.machines:
            r = self.results[m].get(name)
            right = r and r.ns and not r.problem and native.ns and r.checksum == native.checksum
            slowdown[m] = r.ns / native.ns if r and right else None
        return Row(name, native.ns / 1e9 if native.ns else None, slowdown, ROWS[name], _notes(name, self.results))

    def _mean(self, name: str, rows: list[Row], bar: tuple[float, float] | None) -> Row:
        # A mean compares machines only over the rows that all of them have.
        common = [r for r in rows if all(r.slowdown.values())]
        slowdown = {m: mean(r.slowdown[m] for r in common) for m in self.machines}
        notes = [f"without {r.name}" for r in rows if r not in common]
        return Row(name, None, slowdown, bar, notes)

    def _group(self, name: str) -> Row | None:
        rows = [r for r in self.rows if r.name.startswith(name + ".") and ROWS[r.name]]
        return self._mean(name, rows, GROUPS[name]) if rows else None

    def findings(self) -> list[str]:
        """What a reader must know, one sentence each."""
        out = []
        for m in self.machines:
            wrong = sum(f"{m} WRONG" in n for r in self.rows for n in r.notes)
            failed = sum(n.startswith((f"{m} failed", f"{m} skipped")) for r in self.rows for n in r.notes)
            out.append(f"{m}: {wrong} wrong, {failed} without a result, of {len(self.rows)} rows")
        for m in (m for m in self.machines if m != "tcg"):
            if times := self.overall.to_tcg(m):
                must, aim = AS_FAST_AS_TCG
                verdict = "aim reached" if times >= aim else "must reached" if times >= must else "MISSES the must"
                out.append(f"{m}: {times:.2f} times TCG's speed over all (must {must}, aim {aim}): {verdict}")
                slower = [r for r in self.rows if (r.to_tcg(m) or 1) < 0.97 and r.bar and r.name != MAY_DROP_LOCK]
                names = ", ".join(f"{r.name} ({1 / (r.to_tcg(m) or 1):.1f}x)" for r in slower)
                out.append(f"{m}: {len(slower)} rows slower than TCG{': ' + names if names else ''}")
        out += self._processors()
        for m in (m for m in self.machines if m != "tcg"):
            missed = [r for r in self.rows if "MISSES" in r.verdict(m)]
            missed.sort(key=lambda r: (r.slowdown[m] or 0) / (r.bar or (1, 1))[0], reverse=True)
            names = ", ".join(f"{r.name} {r.slowdown[m]:.3g}x (must {r.bar[0] if r.bar else 0:g}x)" for r in missed)
            judged = sum(r.bar is not None for r in self.rows)
            out.append(f"{m}: {len(missed)} of {judged} rows miss their must, furthest first: {names or 'none'}")
        return out

    def _processors(self) -> list[str]:
        out = []
        for m, rows in self.results.items():
            one, both, drop = (rows.get(f"smp.{n}", Result()) for n in ("one", "scale", "shootdown"))
            if one.ns and both.ns:
                out.append(f"{m}: two processors take {both.ns / one.ns:.2f} times as long as one for twice the work, "
                           f"a TLB shootdown {drop.ns / SHOOTDOWNS / 1000:.1f} us")
        return out

    def json(self) -> dict[str, Any]:
        """Everything, and the results it was made from."""
        return {
            "about": self.about,
            "results": {m: {n: dataclasses.asdict(r) for n, r in rows.items()} for m, rows in self.results.items()},
            "rows": [self._row_json(r) for r in [*self.rows, *self.groups, self.overall]],
            "findings": self.findings(),
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        return {
            "name": row.name, "native_seconds": row.native, "slowdown": row.slowdown,
            "times_tcg": {m: row.to_tcg(m) for m in self.machines if m != "tcg"},
            "must": row.bar[0] if row.bar else None, "aim": row.bar[1] if row.bar else None,
            "verdict": {m: row.verdict(m) for m in self.machines if m != "tcg"}, "notes": row.notes,
        }

    def _cells(self, row: Row) -> list[str]:
        cells = [row.name, f"{row.native:.6f}" if row.native else ""]
        for m in self.machines:
            cells.append(ratio(row.slowdown[m]))
            if m != "tcg" and "tcg" in self.machines:
                cells.append(ratio(row.to_tcg(m)))
        cells += [f"{row.bar[0]:g}", f"{row.bar[1]:g}"] if row.bar else ["", ""]
        judged = [m for m in self.machines if m != "tcg"]
        cells.append(", ".join(f"{m + ' ' if len(judged) > 1 else ''}{v}" for m in judged if (v := row.verdict(m))))
        cells.append("; ".join(row.notes))
        return cells

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and cells."""
        head = ["row", "native s"]
        for m in self.machines:
            head.append(f"{m} x")
            if m != "tcg" and "tcg" in self.machines:
                head.append(f"{m} to TCG")
        head += ["must x", "aim x", "verdict", "notes"]
        return head, [self._cells(r) for r in [*self.rows, *self.groups, self.overall]]

    def text(self) -> str:
        """For a terminal."""
        head, cells = self.table()
        widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
        words = {0, len(head) - 2, len(head) - 1}

        def align(i: int, cell: str) -> str:
            return cell.ljust(widths[i]) if i in words else cell.rjust(widths[i])

        lines = ["  ".join(align(i, c) for i, c in enumerate(line)).rstrip() for line in [head, *cells]]
        lines.insert(1 + len(self.rows), "")
        about = [f"{k}: {v}" for k, v in self.about.items()]
        return "\n".join([*about, "", *lines, "", *self.findings()])

    def markdown(self) -> str:
        """For docs/performance.md."""
        head, cells = self.table()
        words = {0, len(head) - 2, len(head) - 1}
        rule = ["---" if i in words else "---:" for i in range(len(head))]
        about = [f"- {k}: {v}" for k, v in self.about.items()]
        groups = cells[len(self.rows):]
        lines = [*about, ""]
        for part in (groups, cells[:len(self.rows)]):
            lines += ["| " + " | ".join(line) + " |" for line in [head, rule, *part]] + [""]
        return "\n".join([*lines, *(f"- {f}" for f in self.findings())])
