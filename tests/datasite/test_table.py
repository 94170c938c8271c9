"""A file either keeps its schema or the operator learns where and how it does not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from core.exceptions import DataError
from core.schema import DataSchema
from datasite.data.report import render
from datasite.data.table import check_table, load_table

AI4I = Path(__file__).parents[3] / "shared" / "data" / "ai4i2020.csv"
ROWS = 60
SCHEMA = DataSchema.model_validate(
    {
        "name": "press",
        "label": {"column": "failure"},
        "machine": {"column": "press_id"},
        "time": {"column": "minute"},
        "columns": [
            {"name": "vibration", "unit": "mm/s", "range": [0, 45]},
            {"name": "strokes", "type": "integer", "range": [0, 100], "missing": 0.1},
            {"name": "oil", "type": "category", "values": ["mineral", "synthetic", "NA"]},
        ],
    }
)
HEADER = ["press_id", "minute", "vibration", "strokes", "oil", "failure"]


def good_rows() -> list[list[object]]:
    """Two presses of 30 minutes each, every tenth row a failure: line 2 is minute 0 of `007`."""
    return [[f"00{7 + i // 30}", i % 30, 1.5, i, "mineral", int(i % 10 == 0)] for i in range(ROWS)]


def write(
    folder: Path, rows: list[list[object]], header: list[str] | None = None, ends: str = "\n"
) -> Path:
    """Write a CSV file as a spreadsheet would."""
    named = header or HEADER
    lines = [",".join(named), *(",".join(str(cell) for cell in row) for row in rows)]
    path = folder / "press.csv"
    path.write_bytes((ends.join(lines) + ends).encode())
    return path


def changed(line: int, column: str, value: object) -> list[list[object]]:
    """Give the good rows with one cell, on `line` of the file, changed."""
    rows = good_rows()
    rows[line - 2][HEADER.index(column)] = value
    return rows


def test_a_good_file_loads_with_one_type_a_column(tmp_path: Path) -> None:
    """Machine and category stay text as spelt, numbers are float64, the label is int64."""
    table = load_table(write(tmp_path, good_rows()), SCHEMA)

    assert [str(kind) for kind in table.dtypes] == [
        "object", "float64", "float64", "float64", "object", "int64",
    ]  # fmt: skip
    assert list(table.columns) == HEADER
    assert table.iloc[0].tolist() == ["007", 0.0, 1.5, 0.0, "mineral", 1]
    assert len(table) == ROWS


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_marks_and_line_ends_do_not_matter(tmp_path: Path, mark: bytes, ends: str) -> None:
    """What a Windows program adds to a CSV file changes nothing."""
    expected = load_table(write(tmp_path, good_rows()), SCHEMA)
    path = write(tmp_path, good_rows(), ends=ends)
    path.write_bytes(mark + path.read_bytes())

    pd.testing.assert_frame_equal(load_table(path, SCHEMA), expected)


@pytest.mark.skipif(not AI4I.exists(), reason=f"the published AI4I file is not at {AI4I}")
def test_the_published_ai4i_file_keeps_its_schema() -> None:
    """Its 339 failures are counted, its modes and product ids are not read."""
    preset = Path(__file__).parents[2] / "deploy" / "schemas" / "ai4i.yaml"
    report = check_table(AI4I, DataSchema.model_validate(yaml.safe_load(preset.read_text())))

    assert report.violations == ()
    assert report.balance == {"all": (9661, 339)}
    assert report.ignored == ("Product ID", "TWF", "HDF", "PWF", "OSF", "RNF")


def test_a_loaded_table_survives_parquet(tmp_path: Path) -> None:
    """The registered copy is the table that was checked, even with empty cells and real times."""
    rows = [[*row[:1], f"2024-05-01T00:{row[1]:02}:00", *row[2:]] for row in good_rows()]
    rows[3][3] = ""
    table = load_table(write(tmp_path, rows), SCHEMA)
    table.to_parquet(tmp_path / "copy.parquet")

    pd.testing.assert_frame_equal(load_table(tmp_path / "copy.parquet", SCHEMA), table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "copy.parquet"), table)


def test_the_report_counts_what_an_operator_wants_to_know(tmp_path: Path) -> None:
    """Rows, machines, span, failures a machine, empty cells and ignored columns are all there."""
    rows = [[*row, "x"] for row in good_rows()]
    rows[0][3] = ""
    report = check_table(write(tmp_path, rows, [*HEADER, "remark"]), SCHEMA)

    assert (report.rows, report.windows, len(report.balance)) == (60, 60, 2)
    assert report.span == ("0", "29")
    assert report.label_rate == pytest.approx(0.1)
    assert report.balance == {"007": (27, 3), "008": (27, 3)}
    assert report.missing == {"vibration": 0, "strokes": 1, "oil": 0}
    assert report.ignored == ("remark",)
    assert report.violation_count == 0
    assert "press.csv: good" in render(report)
    assert "failures    6 (10.00%)" in render(report)


@pytest.mark.parametrize(
    ("line", "column", "value", "message"),
    [
        (17, "vibration", "high", "line 17, 'vibration': 'high' is not a number"),
        (17, "vibration", "True", "line 17, 'vibration': 'True' is not a number"),
        (18, "vibration", 99, "line 18, 'vibration': 99 is outside 0 to 45 mm/s"),
        (18, "vibration", "inf", "line 18, 'vibration': inf is outside 0 to 45 mm/s"),
        (19, "vibration", "", "line 19, 'vibration': is empty"),
        (20, "strokes", 2.5, "line 20, 'strokes': 2.5 is not a whole number"),
        (21, "oil", "Mineral", "'Mineral' is not one of mineral, synthetic, NA; did you mean 'm"),
        (22, "failure", 2, "line 22, 'failure': 2 must be 0 (no failure) or 1 (failure)"),
        (22, "failure", "yes", "line 22, 'failure': 'yes' must be 0 (no failure) or 1"),
        (23, "failure", "", "line 23, 'failure': is empty"),
        (24, "press_id", "", "line 24, 'press_id': is empty"),
        (25, "minute", "noon", "line 25, 'minute': 'noon' is neither a number nor an ISO 8601"),
        (5, "minute", 1, "line 5, 'minute': has the same machine and time as line 3"),
    ],
)
def test_a_wrong_cell_is_named_by_line_and_column(
    tmp_path: Path, line: int, column: str, value: object, message: str
) -> None:
    """The message says where to look, what is there, and what belongs there; and only once."""
    with pytest.raises(DataError) as caught:
        load_table(write(tmp_path, changed(line, column, value)), SCHEMA)

    assert message in str(caught.value)
    assert "breaks schema 'press' in 1 place(s)" in str(caught.value)


def test_a_category_value_may_be_called_na(tmp_path: Path) -> None:
    """Only an empty field is a missing name."""
    table = load_table(write(tmp_path, changed(4, "oil", "NA")), SCHEMA)

    assert table.loc[2, "oil"] == "NA"


def test_too_many_empty_cells_are_one_violation(tmp_path: Path) -> None:
    """Where a few may be empty, seven of sixty are counted and not listed."""
    rows = good_rows()
    for row in rows[:7]:
        row[3] = ""

    with pytest.raises(DataError, match=r"'strokes': 7 of 60 rows \(11.7%\) are empty; .* 10.0%"):
        load_table(write(tmp_path, rows), SCHEMA)


def test_a_missing_column_is_named_with_the_closest(tmp_path: Path) -> None:
    """A misspelt header is the usual cause, so the likely column is offered."""
    header = ["press_id", "minute", "Vibrations", "strokes", "oil", "failure"]

    with pytest.raises(DataError) as caught:
        load_table(write(tmp_path, good_rows(), header), SCHEMA)

    assert "'vibration': the column is missing; did you mean 'Vibrations'?" in str(caught.value)
    assert "(the file has 'press_id', 'minute', 'Vibrations'" in str(caught.value)


def test_what_a_file_has_is_checked_without_what_it_lacks(tmp_path: Path) -> None:
    """With one sensor alone, the other five columns are reported and the sensor still judged."""
    report = check_table(write(tmp_path, [[99]] * 60, ["vibration"]), SCHEMA)

    assert report.violation_count == 5 + 60
    assert (len(report.balance), report.span, report.label_rate) == (1, None, None)
    assert "'failure': the column is missing (the file has 'vibration')" in render(report)


def test_a_time_column_without_times_has_no_span(tmp_path: Path) -> None:
    """Sixty empty times are sixty violations and no first or last."""
    rows = [[row[0], "", *row[2:]] for row in good_rows()]
    report = check_table(write(tmp_path, rows), SCHEMA)

    assert report.span is None
    assert report.violation_count == 60


def test_a_byte_that_is_not_utf8_is_found_deep_in_a_file(tmp_path: Path) -> None:
    """The line is counted in the file, however large it is."""
    path = write(tmp_path, good_rows() * 100)
    path.write_bytes(path.read_bytes() + b"007,99,1,1,\xe4,0\n")

    with pytest.raises(DataError, match="line 6002 has the byte 0xe4"):
        check_table(path, SCHEMA)


@pytest.mark.parametrize("before", [2**20 - 1, 2**20], ids=["across blocks", "in the second"])
def test_a_letter_is_read_whole_wherever_it_stands(tmp_path: Path, before: int) -> None:
    """A letter of two bytes may begin at the end of what is looked through at a time."""
    path = write(tmp_path, good_rows(), [*HEADER[:-1], "failure,remark"])
    head, *lines = path.read_text().splitlines()
    lines = [f"{line}," for line in lines]
    start = len("\n".join([head, lines[0]]))
    lines[0] += "x" * (before - start) + "ö"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    assert path.read_bytes()[before : before + 2] == "ö".encode()

    assert check_table(path, SCHEMA).violation_count == 0
    path.write_bytes(path.read_bytes().replace("ö".encode(), b"\xc3("))
    with pytest.raises(DataError, match="line 2 has the byte 0xc3"):
        check_table(path, SCHEMA)


def test_truth_values_and_dates_are_no_sensor_readings(tmp_path: Path) -> None:
    """Parquet could count them as 1 and as nanoseconds; an operator would not."""
    frame = pd.DataFrame(good_rows(), columns=HEADER)
    frame["vibration"] = True
    frame["strokes"] = pd.Timestamp("2024-05-01")
    frame.to_parquet(tmp_path / "press.parquet")
    report = check_table(tmp_path / "press.parquet", SCHEMA)

    assert report.violation_count == 2 * 60
    assert "row 1, 'vibration': True is not a number" in render(report)


def test_all_violations_are_found_at_once_and_capped(tmp_path: Path) -> None:
    """One broken sensor shows five lines, leaves room for the others, and is counted whole."""
    rows = changed(61, "oil", "water")
    for row in rows:
        row[2] = -1
    report = check_table(write(tmp_path, rows), SCHEMA)

    assert report.violation_count == 61
    assert [found.line for found in report.violations] == [2, 3, 4, 5, 6, 61]
    assert report.out_of_range == {"vibration": 60, "strokes": 0, "oil": 1}
    assert render(report).endswith("and 55 more")


@pytest.mark.parametrize("label", [0, 1])
def test_a_single_class_is_refused(tmp_path: Path, label: int) -> None:
    """Nothing can be learnt from a file without a failure, or with nothing else."""
    rows = [[*row[:-1], label] for row in good_rows()]

    with pytest.raises(DataError, match=f"'failure': every label is {label}; training needs"):
        load_table(write(tmp_path, rows), SCHEMA)


def test_too_few_windows_are_refused(tmp_path: Path) -> None:
    """Windows are counted within machines: 2 of 30 rows make 2 * 19 windows of 12."""
    windowed = SCHEMA.model_copy(update={"window_steps": 12})

    with pytest.raises(DataError, match=r"60 rows make 38 windows of 12 .* at least 50"):
        load_table(write(tmp_path, good_rows()), windowed)


def test_blank_lines_are_skipped_and_still_counted(tmp_path: Path) -> None:
    """A blank line is no row, but the violations after it keep the line an editor shows."""
    path = write(tmp_path, changed(10, "vibration", 99))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], "", *lines[5:], "", ""]))
    report = check_table(path, SCHEMA)

    assert report.rows == 60
    assert [found.line for found in report.violations] == [11]


def test_a_row_of_parquet_is_called_a_row(tmp_path: Path) -> None:
    """Parquet has no lines; its rows count from 1."""
    frame = pd.DataFrame(changed(2, "vibration", 99), columns=HEADER)
    frame.to_parquet(tmp_path / "press.parquet")

    with pytest.raises(DataError, match="row 1, 'vibration': 99 is outside"):
        load_table(tmp_path / "press.parquet", SCHEMA)


def test_parquet_types_that_mean_the_same_are_accepted(tmp_path: Path) -> None:
    """Integer machine ids, timestamps, dictionary-coded categories and boolean labels are fine."""
    frame = pd.DataFrame(good_rows(), columns=HEADER)
    frame["press_id"] = frame["press_id"].astype(int)
    frame["minute"] = pd.Timestamp("2024-05-01") + pd.to_timedelta(frame["minute"], unit="min")
    frame["oil"] = frame["oil"].astype("category")
    frame["failure"] = frame["failure"].astype(bool)
    frame.to_parquet(tmp_path / "press.parquet")
    table = load_table(tmp_path / "press.parquet", SCHEMA)

    assert table[["press_id", "oil", "failure"]].iloc[0].tolist() == ["7", "mineral", 1]
    assert table["minute"].iloc[1] == pd.Timestamp("2024-05-01T00:01:00Z")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"the file is empty \(0 bytes\)"),
        ("a.csv", b"press_id,minute,failure\n", "names its columns but has no rows"),
        ("a.csv", b"\npress_id,minute\n", "the first line is blank"),
        ("a.csv", b"press_id,oil\n1,\xe4\n", "line 2 has the byte 0xe4; save it as CSV UTF-8"),
        ("a.csv", b"PAR1\x00\xff\x81", "is a Parquet file; rename it to end in .parquet"),
        ("a.csv", b"press_id;oil\n1;b\n", "separated by semicolons; save it with commas"),
        ("a.csv", b"oil,failure\n1,2\n3,4,5\n", "line 3 has 3 fields, the header names 2"),
        ("a.csv", b"oil,failure\n1,5,2\n1,4,5\n", "decimals written with commas"),
        ("a.csv", b"oil,oil\n1,2\n", "the header names 'oil' more than once"),
        ("a.parquet", b"press_id,minute\n1,2\n", "is not a Parquet file"),
        ("a.xlsx", b"PK", "neither .csv nor .parquet"),
    ],
)
def test_an_unreadable_file_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    """What no table can be made from is an error even for a check."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        check_table(tmp_path / name, SCHEMA)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A missing file and a directory each say which they are."""
    with pytest.raises(DataError, match="no such file"):
        check_table(tmp_path / "absent.csv", SCHEMA)
    with pytest.raises(DataError, match="is a directory; name the file in it"):
        check_table(tmp_path, SCHEMA)


def test_the_report_lists_the_hardest_machines_first(tmp_path: Path) -> None:
    """A machine without failures is the one to know of, however many machines there are."""
    rows = [[f"m{i:02}", 0, 1, 1, "mineral", int(i != 33)] for i in range(50)]
    text = render(check_table(write(tmp_path, rows), SCHEMA))

    assert text.index("m33") < text.index("m00")
    assert "and 42 more machines" in text
    assert "1 of 50 machines have no failure; a machine has 1 to 1 rows, 1 at the median" in text
    assert len([line for line in text.splitlines() if line.startswith("m") and "0" in line]) < 12


def test_a_whole_number_column_accepts_numbers_written_with_a_point(tmp_path: Path) -> None:
    """`3.0` is what pandas writes for 3 in a column with empty cells."""
    table = load_table(write(tmp_path, changed(4, "strokes", "3.0")), SCHEMA)

    assert table["strokes"].dtype == np.float64
    assert table.loc[2, "strokes"] == 3.0


LONG = 70_000
"""Rows of a file that is read in two chunks."""


def long_file(folder: Path, *changes: tuple[int, str, object]) -> Path:
    """Write seven presses with 10,000 minutes each, with cells changed as (line, column, value)."""
    number = np.arange(LONG)
    table = pd.DataFrame(
        {
            "press_id": number // 10_000,
            "minute": number % 10_000,
            "vibration": 1.5,
            "strokes": 5,
            "oil": "mineral",
            "failure": number % 2,
        }
    ).astype(object)
    for line, column, value in changes:
        table.loc[line - 2, column] = value
    table.to_csv(folder / "long.csv", index=False)
    return folder / "long.csv"


def test_a_long_file_is_judged_as_a_whole(tmp_path: Path) -> None:
    """Counts run over its chunks, and lines are those of the file."""
    report = check_table(
        long_file(tmp_path, (3, "strokes", ""), (69_000, "vibration", 99), (70_001, "strokes", "")),
        SCHEMA,
    )
    assert (report.rows, report.windows, len(report.balance)) == (LONG, LONG, 7)
    assert report.balance["6"] == (5000, 5000)
    assert report.span == ("0", "9999")
    assert report.missing["strokes"] == 2
    assert [(v.line, v.column) for v in report.violations] == [(69_000, "vibration")]


def test_a_row_is_repeated_over_any_distance(tmp_path: Path) -> None:
    """The last line has the machine and time of the second."""
    path = long_file(tmp_path, (LONG + 1, "press_id", 0), (LONG + 1, "minute", 1))
    report = check_table(path, SCHEMA)
    assert report.duplicates == 1
    assert report.violations[0].describe("line") == (
        "line 70001, 'minute': has the same machine and time as line 3"
    )


def test_a_rule_is_shown_five_times_however_long_the_file(tmp_path: Path) -> None:
    """Three broken cells in the first chunk and three in the second."""
    lines = [2, 3, 4, 66_000, 66_001, 66_002]
    report = check_table(long_file(tmp_path, *((n, "vibration", -1) for n in lines)), SCHEMA)
    assert [violation.line for violation in report.violations] == lines[:5]
    assert report.violation_count == 6


def test_a_report_fits_a_terminal(tmp_path: Path) -> None:
    """A hundred columns, whatever the file's columns are called, but for a path."""
    header = [*HEADER, *(f"a rather long name of column {i}" for i in range(40))]
    rows = [[*row, *range(40)] for row in changed(5, "oil", "an oil that nobody has heard of")]
    text = render(check_table(write(tmp_path, rows, header), SCHEMA))
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_a_report_says_how_far_the_label_looks_ahead(tmp_path: Path) -> None:
    """Beside how often it is 1."""
    label = SCHEMA.label.model_copy(update={"horizon_steps": 60})
    ahead = SCHEMA.model_copy(update={"label": label})
    text = render(check_table(write(tmp_path, good_rows()), ahead))
    assert "failures    6 (10.00%), within 60 steps\n" in text


def test_a_report_says_what_each_column_should_be(tmp_path: Path) -> None:
    """Range and unit, or the values; how much is missing, how much may be."""
    rows = changed(3, "strokes", "")
    rows[9][2] = 99
    lines = render(check_table(write(tmp_path, rows), SCHEMA)).splitlines()
    cells = {
        line.split()[0]: line.split()[1:] for line in lines if line[:3] in {"vib", "str", "oil"}
    }
    assert cells["vibration"] == ["0", "to", "45", "mm/s", "0", "0.0%", "1", "(1.7%)"]
    assert cells["strokes"] == ["0", "to", "100", "1", "(1.7%)", "10.0%", "0"]
    assert cells["oil"] == ["mineral,", "synthetic,", "NA", "0", "0.0%", "0"]
