"""The arithmetic of the tables."""

from __future__ import annotations

import math

import pytest

from benchmarks.figures import Row, latency_summary, number, percentile, spread
from benchmarks.report import markdown, merged_rows
from benchmarks.rows import empty_rows


def test_percentiles_are_values_that_were_seen():
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, p) for p in (0, 1, 50, 99, 99.9, 100)] == [1, 1, 50, 99, 100, 100]
    assert percentile([7.0], 50) == 7.0
    assert math.isnan(percentile([], 50))


def test_latency_is_summed_up_in_milliseconds_whatever_the_order():
    summary = latency_summary([0.003, 0.001, 0.002])
    assert summary == {"count": 3, "p50_ms": 2.0, "p99_ms": 3.0, "p999_ms": 3.0, "max_ms": 3.0}


@pytest.mark.parametrize(
    ("better", "bound", "values", "reached"),
    [
        ("lower", 1.4, [1.3, 1.4, 9.0], True),
        ("lower", 1.4, [1.3, 1.5, 9.0], False),
        ("higher", 5.0, [1.0, 5.0, 6.0], True),
        ("higher", 5.0, [4.0, 4.9, 6.0], False),
        ("equal", 1.0, [1.0, 1.0], True),
        ("equal", 1.0, [1.0, 1.0, 0.99], False),
        ("higher", 5.0, [], None),
        ("higher", None, [1.0], None),
    ],
)
def test_the_median_decides_whether_a_figure_is_reached_except_where_every_value_must(better, bound, values, reached):
    assert Row("key", "title", bound=bound, better=better, values=values).reached is reached


def test_numbers_are_short():
    numbers = {1.2345: "1.23", 123.4: "123", 999.7: "1000", 1234.5: "1234", 12345.0: "12.3 k", 2_345_678.0: "2.35 M"}
    assert {value: number(value) for value in numbers} == numbers
    assert spread([3.0, 1.0, 2.0]) == "2 (1-3)"
    assert spread([2.0]) == "2"


def test_results_of_several_runs_are_merged_by_row():
    rows = merged_rows([_result([1.2, 1.3]), _result([1.5])])
    assert rows[0].key == "cpu_over_echo"
    assert rows[0].values == [1.2, 1.3, 1.5]
    assert rows[0].median == 1.3


def test_the_markdown_says_what_was_reached_and_what_was_void():
    text = markdown([_result([1.2]), _result([1.3]), _result([1.5])])
    assert "128 streams | 1.3 (1.2-1.5) x | <= 1.4 x | yes |" in text
    assert "| void | >= 5 x |  |" in text
    assert "| naive, lstm-h64, 128 | 200 (100-300) |" not in text
    assert "| naive, lstm-h64, 128 | 100 | 9 | 1 / 2 | 50% |" in text
    assert "Steps compared bit for bit: 30, different: 0. Void runs: 3." in text


def _result(values: list[float]) -> dict:
    row = empty_rows()["cpu_over_echo"]
    row.values = values
    run = {"server": "naive", "model": "lstm-h64", "streams": 128, "steps_per_second": 100.0, "server_cpu_us": 9.0}
    run |= {"load_share": 0.5, "latency": {"p50_ms": 1.0, "p99_ms": 2.0}, "void": ""}
    machine = {"cpu": "some CPU", "cpus": 2, "memory_gb": 8, "python": "3.11"}
    conditions = {"repeats": 1, "seconds": 1.0, "server_core": 0, "load_core": 1, "intra_op_threads": 1}
    return {
        "machine": machine,
        "conditions": {**conditions, "load_average_before": 0.1},
        "rows": [row.to_json()],
        "runs": [run, {**run, "steps_per_second": 300.0, "void": "late"}, {**run, "rate": 5.0}, {"server": "idle"}],
        "voids": ["late"],
        "steps_compared": 10,
        "steps_wrong": 0,
    }
