"""Tests of the benchmark's own parts: python3 -m unittest discover bench"""

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

import guest_image
import guest_report
import guest_run
from guest_run import Machine, Result


def told(script: str, rows: list[str]) -> dict[str, Result]:
    """What `run` makes of a machine that is this shell script."""
    return guest_run.run(Machine("test", lambda rows, cpus, seconds: ["sh", "-c", script, *rows]), rows, 1, 0.1)


def report(**machines: dict[str, Result]) -> guest_report.Report:
    return guest_report.Report(machines, {})


class Run(unittest.TestCase):
    def test_reads_results_among_other_lines(self) -> None:
        out = told("printf 'noise\\r\\nguestbench: begin int.sort\\r\\nint.sort 1500.5 7 00000000000000ff 20\\r\\n"
                   "guestbench: begin int.adc\\r\\nint.adc skipped: why not\\r\\nguestbench: end\\r\\n'",
                   ["int.sort", "int.adc"])
        self.assertEqual(out["int.sort"], Result(1500.5, 7, "00000000000000ff"))
        self.assertEqual(out["int.adc"].problem, "skipped: why not")

    def test_clock_that_runs_away_is_told(self) -> None:
        out = told("echo guestbench: begin int.sort; sleep 0.2; echo int.sort 1 1 0000000000000000 60000000000",
                   ["int.sort"])
        self.assertGreater(out["int.sort"].drift, 1)

    def test_a_crash_costs_one_row(self) -> None:
        # $0 is the first row that is still to be run.
        out = told("echo guestbench: begin $0; test $0 = int.sort && exit 3; echo $0 5 1 0000000000000001 9; "
                   "echo guestbench: end", ["int.sort", "int.adc"])
        self.assertIn("status 3", out["int.sort"].problem)
        self.assertEqual(out["int.adc"].ns, 5)

    def test_rounds_keep_the_best_time_and_the_worst_drift(self) -> None:
        r = Result()
        for other in (Result(9, 1, "a", drift=0.2), Result(7, 2, "a", drift=-0.3), Result(8, 3, "a")):
            r.merge(other)
        self.assertEqual((r.ns, r.units, r.drift, r.problem), (7, 2, -0.3, ""))
        r.merge(Result(1, 1, "b"))
        self.assertIn("differently", r.problem)


class Table(unittest.TestCase):
    def test_verdicts(self) -> None:
        native = {"int.sort": Result(100, 1, "a"), "int.div": Result(100, 1, "a"), "int.adc": Result(100, 1, "a")}
        jit = {"int.sort": Result(300, 1, "a"), "int.div": Result(100, 1, "a"), "int.adc": Result(190, 1, "a")}
        tcg = {n: Result(600, 1, "a") for n in native}
        r = report(native=native, tcg=tcg, jit=jit)
        self.assertEqual([(x.name, x.verdict("jit"), x.to_tcg("jit")) for x in r.rows],
                         [("int.sort", "MISSES by 2.0", 2.0), ("int.div", "aim", 6.0), ("int.adc", "ok", 600 / 190)])
        self.assertAlmostEqual(r.overall.slowdown["jit"] or 0, (3 * 1 * 1.9) ** (1 / 3))

    def test_a_wrong_answer_has_no_time(self) -> None:
        r = report(native={"int.sort": Result(100, 1, "a")}, jit={"int.sort": Result(50, 1, "b")})
        self.assertIsNone(r.rows[0].slowdown["jit"])
        self.assertIn("jit: 1 wrong, 0 without a result, of 1 rows", r.findings())

    def test_means_take_rows_that_all_have(self) -> None:
        native = {"int.sort": Result(100, 1, "a"), "int.div": Result(100, 1, "a")}
        r = report(native=native, tcg={"int.sort": Result(400, 1, "a")}, jit={n: Result(200, 1, "a") for n in native})
        self.assertAlmostEqual(r.overall.slowdown["jit"] or 0, 2)
        self.assertAlmostEqual(r.overall.to_tcg("jit") or 0, 2)
        self.assertEqual(r.overall.notes, ["without int.div"])


class Image(unittest.TestCase):
    @unittest.skipUnless(shutil.which("cpio"), "needs cpio")
    def test_archive_is_what_cpio_reads(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "program").write_bytes(b"abc")
            image = guest_image.initramfs(folder, folder / "program")
            with image.open("rb") as archive:
                listing = subprocess.run(["cpio", "-itv", "--quiet"], stdin=archive, capture_output=True, text=True,
                                         check=True).stdout
        self.assertRegex(listing, r"(?m)^-rwxr-xr-x .* 3 .* init$")
        self.assertRegex(listing, r"(?m)^crw------- .* 5, +1 .* dev/console$")


if __name__ == "__main__":
    unittest.main()
