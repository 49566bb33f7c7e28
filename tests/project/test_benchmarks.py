"""The benchmarks measure what they claim, and their tables contain numbers that a reader can check."""

import ast
import importlib.util
import re
import subprocess
import sys
from itertools import dropwhile, takewhile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks import compare_engines, repro
from benchmarks import coverage as coverage_benchmark
from benchmarks.contestants import CONTESTANTS, affordable_picks, is_installed
from benchmarks.datasets import KINDS, REAL, make
from benchmarks.machine import cores
from benchmarks.measure import Timing, compare_picks, covering_radius, extrapolate, textbook
from benchmarks.plan import FULL, QUICK, STANDARD, Case
from benchmarks.results import Compared, Measurements, exponents, format_ratio, format_seconds, render
from benchmarks.summary import block_of, summarize

ROOT = Path(__file__).parents[2]
LINE = np.array([[0.0], [3.0], [10.0], [6.0]], dtype=np.float32)


def contestant_named(name):
    return next(contestant for contestant in CONTESTANTS if contestant.name == name)


def test_the_textbook_takes_the_farthest_each_time():
    # 10 is farthest from 0; then 6 is 4 from 10, and 3 is 3 from 0.
    assert textbook(LINE, 4) == [0, 2, 3, 1]


def test_the_covering_radius_is_the_largest_distance_to_the_nearest_pick():
    assert covering_radius(LINE, [0]) == 10.0
    assert covering_radius(LINE, [0, 2]) == 4.0


def test_picks_that_differ_are_counted_and_their_radius_is_compared():
    # {0, 6} leaves 10 at 4 from it, {0, 10} leaves 6 at 4, {0, 3} leaves 10 at 7.
    assert compare_picks(LINE, [0, 2], [0, 2]) == {"first_difference": 0, "n_other": 0, "radius_ratio": 1.0}
    assert compare_picks(LINE, [2, 0], [0, 2]) == {"first_difference": 1, "n_other": 0, "radius_ratio": 1.0}
    assert compare_picks(LINE, [0, 1], [0, 2]) == {"first_difference": 2, "n_other": 1, "radius_ratio": 7 / 4}


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda contestant: contestant.name)
def test_every_contestant_picks_what_the_textbook_picks(contestant):
    if not is_installed(contestant):
        pytest.skip(f"{contestant.package} is not installed")
    rows = make("clustered", 300, 8)

    assert list(map(int, contestant.prepare(rows, 30)())) == textbook(rows, 30)


@pytest.mark.parametrize("contestant", coverage_benchmark.CONTESTANTS, ids=lambda contestant: contestant.name)
def test_every_contestant_of_coverage_first_takes_the_middle_and_then_what_that_leaves(contestant):
    if importlib.util.find_spec(contestant.module) is None:
        pytest.skip(f"{contestant.module} is not installed")
    # From 2 the others are 2, 1 and 7 away: 4 + 1 + 49 is the smallest sum. Then 9 takes off 49.
    line = np.array([[0.0], [1.0], [2.0], [9.0]], dtype=np.float32)

    assert contestant.pick(line, 2, 2.0).tolist() == [2, 3]


def test_a_slow_contestant_makes_fewer_picks_if_its_time_is_linear_and_is_skipped_otherwise():
    slow = contestant_named("numpy")._replace(most=1e6)

    assert affordable_picks(slow, n=100, d=10, k=1_000) == 1_000
    assert affordable_picks(slow, n=100, d=8, k=5_000) == 1_200  # 1,250 rounded down to two digits
    assert affordable_picks(slow, n=1_000, d=100, k=5_000) == 0  # 10 picks are too few
    assert affordable_picks(slow._replace(is_linear=False), n=100, d=8, k=5_000) == 0


def test_all_that_benchmarks_import_from_the_library_exists():
    missing = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "datapool":
                module = importlib.import_module(node.module)
                missing += [
                    f"{path.name}: {node.module}.{name.name}" for name in node.names if not _has(module, name.name)
                ]

    assert missing == []


def _has(module: ModuleType, name: str) -> bool:
    is_package = hasattr(module, "__path__")
    return hasattr(module, name) or (is_package and bool(importlib.util.find_spec(f"{module.__name__}.{name}")))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(REAL)))
def test_generated_embeddings_depend_only_on_the_seed(kind):
    rows = make(kind, 5_000, 4)

    assert (rows.shape, rows.dtype) == ((5_000, 4), np.float32)
    assert np.array_equal(rows, make(kind, 5_000, 4))
    assert not np.array_equal(rows, make(kind, 5_000, 4, seed=1))


def test_normalized_embeddings_have_length_one():
    assert np.allclose(np.linalg.norm(make("normalized", 5_000, 4), axis=1), 1.0, atol=1e-6)


def test_times_show_three_digits_and_ratios_are_those_of_the_times_shown():
    assert [format_seconds(value) for value in (0.012345, 1.2345, 12.345, 1234.5)] == ["0.0123", "1.23", "12.3", "1234"]
    assert [format_ratio("12.3", "1.23"), format_ratio("1234", "1.00"), format_ratio("1.00", "4.00")] == [
        "10.0×",
        "1234×",
        "0.25×",
    ]


def test_the_time_of_fewer_picks_is_extrapolated_linearly():
    # 2 CPU seconds before the first pick and 0.01 per pick; wall seconds are twice that.
    runs = {100: Timing(3.0, 6.0, "a"), 200: Timing(4.0, 8.0, "b")}

    assert extrapolate(runs, 1_000) == Timing(12.0, 24.0, "b")


def test_an_extrapolated_time_is_marked():
    compared = Compared(
        Case("uniform", 1_000, 10, 500), 1, "numpy", 100, "", "the textbook", cpu=[1.0, 2.0, 9.0], wall=[1.0]
    )

    assert (compared.about, compared.seconds("cpu"), compared.spread("cpu")) == ("≈ ", "2.00", "(1.00 to 9.00)")
    assert compared._replace(k=500).about == ""


def test_the_exponent_is_the_slope_of_log_time():
    runs = [{"case": Case("uniform", n, 2, 3), "cpu": [n**2 / 7]} for n in (10, 20, 40)]

    assert exponents({"n": runs}) == "n^2.00"


def test_the_plans_contain_the_required_sizes():
    sizes = {(10_000, 128, 1_000), (50_000, 128, 5_000), (200_000, 64, 2_000), (20_000, 512, 10_000)}

    assert {case[1:] for case in STANDARD.cases} >= sizes
    assert {case[1:] for case in FULL.cases} >= sizes | {(1_000_000, 128, 10_000)}
    assert {case.kind for case in STANDARD.cases} == {case.kind for case in FULL.cases} == set(KINDS)


def measured():
    """Return measurements of two cases on 1 and 2 threads.

    datapool takes 1 and 2 s. lightly-mundig takes 10 and 30 s, and errs in the second case. numpy takes 8 s, extrapolated from
    half of the picks.
    """
    compared = []
    for threads in (1, 2):
        for case, ours, mundig in ((Case("clustered", 10, 2, 4), 1.0, 10.0), (Case("uniform", 10, 2, 4), 2.0, 30.0)):
            for contestant in CONTESTANTS:
                seconds = {"datapool": ours, "lightly-mundig": mundig}.get(contestant.name, 8.0)
                k = 2 if contestant.name == "numpy" else 4
                missing = "" if contestant.name in ("datapool", "lightly-mundig", "numpy") else "over budget"
                found = Compared(case, threads, contestant.name, k, missing, "the textbook", [seconds], [seconds])
                if contestant.name == "lightly-mundig" and case.kind == "uniform":
                    found = found._replace(first_difference=3, n_other=1, radius_ratio=1.5)
                compared.append(found)
    run = {"cpu": [1.0], "wall": [3.0]}
    return Measurements(
        limits={
            threads: {"machine": {"processor": "a processor"}, "limits": {"read GB/s": 1.0, "float32 GFLOP/s": 1.0}}
            for threads in (1, 2)
        },
        compared=compared,
        growth={"n": [{"case": ["uniform", n, 2, 4], "cpu": [float(n)]} for n in (10, 20)]},
        pools={threads: [{"size": [10, 5, 2, 4], "first": run, "all": run}] for threads in (1, 2)},
        resume={"case": ["uniform", 10, 2, 4], "runs": [{"known": 2, "equal": True, **run}]},
        cut={"case": ["uniform", 10, 2, 4], "runs": [{"picks": 2, **run}]},
        memory=[{"size": [10, 0, 2, 4], "embeddings": 100, "more": 25}],
        tables="| rows | seconds |",
        others=0.02,
    )


def test_the_summary_states_the_results_of_the_measurements():
    text = summarize(measured())

    assert "| 10 × 2, 4 picks, clustered | 1.00 | 10.0 (10.0×) | –, over budget |" in text
    assert "| ≈ 8.00 (8.0×) |" in text
    assert "| 10 × 2, 4 picks, uniform |" not in text  # not shown as a row, but included in the ranges
    assert "from 10.0× (10 × 2, 4 picks, clustered) to 15.0× (10 × 2, 4 picks, uniform)" in text
    assert "nearest to datapool comes numpy, 4.0× (10 × 2, 4 picks, uniform)" in text
    assert "in 2 of the 2 cases compared with it" in text
    assert "in 1 of 2 cases, at the earliest at pick 3; up to 25.0 % of its picks are others" in text
    assert "1.5000 times as large" in text
    assert "used by other programs meanwhile: 2 % of all cores" in text
    assert "up to 1.25 times that of the embeddings" in text


def test_the_table_of_a_case_has_the_times_and_the_minimum_time_to_read_the_embeddings_once_per_pick():
    rows = rows_below(render(measured(), "", "make bench"), "### 10 × 2, 4 picks, uniform")

    assert rows[0][:5] == ["datapool", "4", "2.00 (2.00 to 2.00)", "1.0×", "2.00 (2.00 to 2.00)"]
    assert rows[1][:4] == ["lightly-mundig", "4", "30.0 (30.0 to 30.0)", "15.0×"]
    assert rows[2][:3] == ["scikit-matter, Voronoi", "–", "–, over budget"]
    assert rows[5][:4] == ["numpy", "2", "≈ 8.00 (8.00 to 8.00)", "4.0×"]
    assert rows[-1][4] == "0.000000320"  # 10 x 2 numbers of 4 bytes, 4 times, at 1 GB/s


def test_a_busy_machine_leaves_no_seconds_on_the_clock_and_none_of_several_threads():
    busy = measured()._replace(others=0.4).without_what_others_spoil()
    text = render(busy, summarize(busy), "make bench")
    rows = rows_below(text, "### 10 × 2, 4 picks, uniform")

    assert rows[0] == ["datapool", "4", "2.00 (2.00 to 2.00)", "1.0×", "1"]
    assert len(rows) == len(CONTESTANTS)  # the limit of reading is one on the clock
    assert "2 threads" not in text
    assert "wall" not in text
    assert "on the clock, " not in text
    assert "Other programs used the machine during this run." in text
    assert measured().without_what_others_spoil() == measured()  # 2 % are no matter


def test_the_summary_states_how_near_plain_loops_come_on_real_embeddings():
    found = measured()
    real = [
        one._replace(case=one.case._replace(kind="fashion")) for one in found.compared if one.case.kind == "uniform"
    ]

    text = summarize(found._replace(compared=found.compared + real))

    assert (
        "On embeddings of real images, one plain pass per pick takes in CPU time, 1 thread: numpy 4.0× (10 × 2" in text
    )
    assert "On embeddings of real images" not in summarize(found)


def test_the_results_end_with_the_output_of_the_tables_benchmark():
    assert render(measured(), "", "make bench").endswith("## Tables\n\n| rows | seconds |\n")


@pytest.mark.slow
def test_engines_are_compared_to_the_last_bit():
    engine = compare_engines.load_engine(ROOT)

    def inexact(*arguments, **options):
        found = engine(*arguments, **options)
        return found._replace(distances=np.nextafter(found.distances, np.inf))

    assert compare_engines.compare(compare_engines.QUICK[0], [engine, engine], 1).endswith("| equal | equal |")
    assert compare_engines.compare(compare_engines.QUICK[0], [engine, inexact], 1).endswith("| DIFFERENT | equal |")


def test_the_table_of_the_repro_benchmark_has_medians_and_the_median_of_the_ratios():
    # Ratios of the runs: 1/2, 2/2 and 9/3.
    text = repro.table({"a no-op": {"this checkout": [1.0, 2.0, 9.0], "old": [2.0, 2.0, 3.0]}})

    assert text.splitlines()[2] == "| a no-op | 2.00 | 2.00 | 1.00 |"


def test_the_repro_benchmark_raises_if_other_stages_ran_than_expected():
    output = "Stage 'scan' didn't change, skipping\nRunning stage 'sample':\n> python -m stages.sample\n"

    repro.require_stages(output, {"sample"})
    with pytest.raises(RuntimeError, match=r"stages that ran: \['sample'\], expected: \[\]"):
        repro.require_stages(output, set())


def rows_below(text, heading):
    """Return the cells of the first table below a heading, without its header."""
    lines = iter(text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0].splitlines())
    beginning = dropwhile(lambda line: not line.startswith("|"), lines)
    table = list(takewhile(lambda line: line.startswith("|"), beginning))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.mark.full
def test_a_quick_run_lists_every_contestant_in_every_case_with_the_ratios_of_the_times_shown():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.selection", "--quick"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    text = done.stdout

    for case in QUICK.cases:
        rows = rows_below(text, f"### {case}")
        assert [row[0] for row in rows][: len(CONTESTANTS)] == [contestant.name for contestant in CONTESTANTS]
        ours = rows[0]
        n_columns = {2 + 3, *(2 + 5 * threads for threads in range(1, 1 + len({1, len(cores())})))}  # 3: a busy machine
        assert {len(row) for row in rows} in [{n} for n in n_columns]
        for row, contestant in zip(rows[: len(CONTESTANTS)], CONTESTANTS, strict=True):
            if not is_installed(contestant):
                assert row[2] == "–, not installed"
                continue
            step = 3 if len(row) == 2 + 3 else 5
            for column in range(2, len(row), step):
                for time in range(column, column + step - 1, 2):
                    ratio = time + 1
                    shown, fastest = (float(re.match(r"(?:≈ )?([\d.]+) \(", cells[time])[1]) for cells in (row, ours))
                    assert row[ratio] == format_ratio(str(shown), str(fastest)), (case, row)
                assert int(row[column + step - 1]) == QUICK.repetitions
    exact = rows_below(text, "## Exactness")
    assert {row[0] for row in exact} == {str(case) for case in QUICK.cases}
    assert all(row[2] == "the textbook" and re.fullmatch(r"all \d+ equal", row[3]) for row in exact)
    assert len(rows_below(text, "## Memory")) == len(QUICK.memory)
    assert [row[0] for row in rows_below(text, "## Another min_distance")] == ["50", "10"]
    assert {row[3] for row in rows_below(text, "## With a pool, and from known picks on")} >= {"1 thread"}
    assert "clustered" in block_of(text)
    assert not re.search(r"20\d\d-\d\d|\b(nan|inf)\b", text)
