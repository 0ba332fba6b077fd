"""Records survive their own JSON, and the table is safe to open."""

import csv
import io
import json

import numpy as np
import pytest

from medgen.geometry import Grid
from medgen.run.records import COLUMNS, Key, Recipe, Record, case_id, cases_csv

KEY = Key("a" * 64, "b" * 64, Recipe("bundle", "0.1.0", "c" * 64, {"window": (96, 96, 80), "overlap": 0.5}))


def rows_of(*records: Record) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(cases_csv(records))))


def test_a_record_written_and_read_back_is_the_same() -> None:
    record = Record("a.nii", "done", key=KEY, files={"x": 3}, seconds={"read": 0.25}, flags=("regridded", "other"))
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize("damage", [{"status": "half"}, {"unheard_of": 1}, {"key": {"input_sha256": "x"}}])
def test_what_is_no_record_is_not_taken_for_one(damage: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Record.from_json({**Record("a", "done").to_json(), **damage})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Recipe("bundle", "0.1.0", "c" * 64, {"window": [96, 96, 80], "overlap": 0.5}), ""),
        (Recipe("bundle", "0.2.0", "c" * 64, dict(KEY.recipe.settings)), "bundle version 0.1.0 -> 0.2.0"),
        (Recipe("bundle", "0.1.0", "d" * 64, dict(KEY.recipe.settings)), "weights cccccccc -> dddddddd"),
        (Recipe("bundle", "0.1.0", "c" * 64, {**KEY.recipe.settings, "overlap": 0.25}), "overlap 0.5 -> 0.25"),
        (Recipe("bundle", "0.1.0", "c" * 64, {"window": [96, 96, 80]}), "overlap 0.5 -> None"),
    ],
)
def test_a_key_says_what_changed(changed: Recipe, said: str) -> None:
    assert Key("a" * 64, "b" * 64, changed).changes_since(KEY) == said


def test_a_key_sees_a_changed_or_moved_input() -> None:
    assert Key("e" * 64, "f" * 64, KEY.recipe).changes_since(KEY) == "input changed; input moved"


def test_settings_that_are_no_json_are_refused_at_once() -> None:
    with pytest.raises(TypeError):
        Recipe("bundle", "0.1.0", "c" * 64, {"device": object()})


def test_the_table_has_the_columns_that_were_promised() -> None:
    assert COLUMNS[:6] == ("case", "input", "status", "stage", "reason", "output")
    grid = Grid((4, 5, 6), np.diag([-0.5, 1.25, 3.0, 1.0]))
    seconds = {"read": 1.0, "prepare": 0.5, "compute": 2.0, "write": 0.25}
    (row,) = rows_of(Record("a.nii", "done", output="a_T2w.nii", seconds=seconds, flags=("x", "y")).on(grid))
    assert (row["case"], row["input"], row["output"]) == ("a.nii", "a.nii", "a_T2w.nii")
    assert (row["grid"], row["spacing"], row["orientation"]) == ("4x5x6", "0.5x1.25x3", "LAS")
    assert (row["seconds_compute"], row["seconds_total"], row["flags"]) == ("2.00", "3.75", "x;y")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_value_runs_as_a_formula(start: str) -> None:
    (row,) = rows_of(Record(f"{start}HYPERLINK(1)", "failed", "read", f"{start}1"))
    assert row["case"] == f"'{start}HYPERLINK(1)"
    assert row["reason"] == f"'{start}1"


def test_a_line_break_in_a_name_breaks_no_row() -> None:
    assert [row["case"] for row in rows_of(Record("a\r\nb\rc", "done"), Record("d", "done"))] == ["a b c", "d"]


def test_names_with_umlauts_commas_and_quotes_come_back_from_the_table() -> None:
    name = 'Größe, "groß"/scän.nii.gz'
    assert rows_of(Record(name, "done"))[0]["case"] == name


def test_a_name_that_is_not_valid_utf8_has_a_row_and_an_id() -> None:
    name = b"sub-M\xfcller.nii".decode("utf-8", "surrogateescape")
    assert rows_of(Record(name, "done"))[0]["case"] == "sub-M?ller.nii"
    assert len(case_id(name)) == 24


def test_the_table_is_sorted_whatever_the_order_of_the_records() -> None:
    assert [row["case"] for row in rows_of(Record("b", "done"), Record("a", "failed"))] == ["a", "b"]
