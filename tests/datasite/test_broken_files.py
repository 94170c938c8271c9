"""Files as factories really send them: each is refused with the words that a person needs.

What is expected is the whole message, but for the folder that the file lies in.
"""

import gzip
import io
import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.configuration import load_yaml
from core.exceptions import ConfigurationError, DataError
from core.schema import DataSchema
from datasite.data.table import check_table
from datasite.ledger import Ledger
from datasite.registry import Registry

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
            {"name": "oil", "type": "category", "values": ["mineral", "synthetic"]},
        ],
    }
)
HEADER = ["press_id", "minute", "vibration", "strokes", "oil", "failure"]
NAMES = "'press_id', 'minute', 'vibration', 'strokes', 'oil', 'failure'"
ADVICE = "Correct the file, or the schema if it is the schema that is wrong."


def good_rows() -> list[list[object]]:
    """Two presses of 30 minutes each, every tenth row a failure: line 2 is minute 0 of `7`."""
    return [[str(7 + i // 30), i % 30, 1.5, i, "mineral", int(i % 10 == 0)] for i in range(ROWS)]


def text(
    *changes: tuple[int, str, object],
    header: list[str] | None = None,
    column: tuple[str, Callable[[int], object]] | None = None,
    between: str = ",",
) -> str:
    """Give the good rows as CSV.

    Args:
        changes: Line, column and value of each cell that is changed.
        header: Names in place of `HEADER`.
        column: A column that is changed throughout, and what it has in each row, from 0.
        between: What separates the cells.
    """
    rows = good_rows()
    for line, name, value in changes:
        rows[line - 2][HEADER.index(name)] = value
    if column is not None:
        for number, row in enumerate(rows):
            row[HEADER.index(column[0])] = column[1](number)
    lines = [header or HEADER, *rows]
    return "".join(between.join(map(str, line)) + "\n" for line in lines)


def parquet(rows: int = ROWS, **columns: object) -> bytes:
    """Give the good rows as Parquet, with some columns exchanged."""
    frame = pd.DataFrame(good_rows()[:rows], columns=HEADER)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for name, values in columns.items():
        table = table.set_column(HEADER.index(name), name, pa.array(values))
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def damaged(content: bytes) -> bytes:
    """Overwrite the first pages of a Parquet file."""
    return content[:40] + b"\xff" * 400 + content[440:]


def places(total: int, *lines: str) -> str:
    """Give the message on a file whose rows break the schema."""
    head = f"FILE: breaks schema 'press' in {total} place(s):"
    return "\n".join([head, *(f"  {line}" for line in lines), ADVICE])


def mistakes(*lines: str) -> str:
    """Give the message on a schema with mistakes."""
    return "\n".join([f"FILE: {len(lines)} mistake(s):", *(f"  {line}" for line in lines)])


def moment(minute: int, zone: str = "") -> str:
    """Give a time of the first of May."""
    return f"2024-05-01T00:{minute % 30:02}:00{zone}"


CSV: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "FILE: the file is empty (0 bytes)"),
    "blank": ("\n\n\n", "FILE: the first line is blank; it must name the columns"),
    "header only": (",".join(HEADER) + "\n", "FILE: names its columns but has no rows"),
    "header and blank lines": (
        ",".join(HEADER) + "\n\n\n",
        "FILE: names its columns but has no rows",
    ),
    "no header": (
        "\n".join(text().splitlines()[1:]),
        (
            "FILE: has none of the columns of schema 'press'; its columns are '7', '0', "
            "'1.5', '0', 'mineral', '1'; does its first line name the columns?"
        ),
    ),
    "semicolons": (
        text(between=";"),
        (
            "FILE: its columns are separated by semicolons; save it with commas between "
            "columns and points in decimals"
        ),
    ),
    "tabs": (
        text(between="\t"),
        (
            "FILE: its columns are separated by tabs; save it with commas between columns "
            "and points in decimals"
        ),
    ),
    "bars": (
        text(between="|"),
        (
            "FILE: its columns are separated by bars; save it with commas between columns "
            "and points in decimals"
        ),
    ),
    "semicolons and decimal commas": (
        text(between=";").replace("1.5", "1,5"),
        (
            "FILE: its columns are separated by semicolons; save it with commas between "
            "columns and points in decimals"
        ),
    ),
    "decimal commas": (
        text().replace("1.5", "1,5"),
        (
            "FILE: its lines have more fields than the 6 of the header; are the decimals "
            "written with commas?"
        ),
    ),
    "quoted decimal comma": (
        text((4, "vibration", '"1,5"')),
        places(1, "line 4, 'vibration': '1,5' is not a number; write decimals with a point"),
    ),
    "thousands": (
        text((4, "vibration", '"1,234.5"')),
        places(
            1,
            (
                "line 4, 'vibration': '1,234.5' is not a number; write it without separators "
                "of thousands, decimals with a point"
            ),
        ),
    ),
    "unit in the cell": (
        text((4, "vibration", "1.5 mm/s")),
        places(1, "line 4, 'vibration': '1.5 mm/s' is not a number"),
    ),
    "Excel error": (
        text((4, "vibration", "#DIV/0!")),
        places(1, "line 4, 'vibration': '#DIV/0!' is not a number"),
    ),
    "UTF-16": (text().encode("utf-16"), "FILE: is UTF-16 text; save it as CSV UTF-8"),
    "Latin-1": (
        text((4, "oil", "ölig")).encode("latin-1"),
        "FILE: is not UTF-8 text: line 4 has the byte 0xf6; save it as CSV UTF-8",
    ),
    "NUL": (
        text((4, "vibration", "1\x005")),
        "FILE: line 4 has a NUL byte: the file is damaged or no text; save it as CSV UTF-8",
    ),
    "Excel renamed": (
        b"PK\x03\x04\x14\x00\x06\x00" + b"\x00" * 64,
        "FILE: is an Excel workbook or another zip archive; save it as CSV UTF-8",
    ),
    "old Excel renamed": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x00" * 64,
        "FILE: is an old Excel workbook (.xls); save it as CSV UTF-8",
    ),
    "gzip": (gzip.compress(text().encode()), "FILE: is compressed with gzip; unpack it first"),
    "Parquet renamed": (parquet(), "FILE: is a Parquet file; rename it to end in .parquet"),
    "ragged, longer": (
        text((4, "failure", "0,0")),
        (
            "FILE: line 4 has 7 fields, the header names 6; is a decimal written with a "
            "comma, or a comma in a text without quotes?"
        ),
    ),
    "ragged, shorter": (
        text().replace("7,2,1.5,2,mineral,0", "7,2,1.5"),
        places(2, "line 4, 'oil': is empty", "line 4, 'failure': is empty"),
    ),
    "unclosed quote": (
        text((4, "oil", '"mineral')),
        "FILE: the quote that is opened in line 4 is never closed",
    ),
    "header twice": (
        text(header=[*HEADER[:-1], "minute"]),
        "FILE: the header names 'minute' more than once; keep one of them",
    ),
    "header misspelt": (
        text(header=["press_id", "minute", "Vibrations", *HEADER[3:]]),
        places(
            1,
            (
                "'vibration': the column is missing; did you mean 'Vibrations'? (the file has "
                "'press_id', 'minute', 'Vibrations', 'strokes', 'oil', 'failure')"
            ),
        ),
    ),
    "header with blanks": (
        text(header=["press_id", "minute", " vibration", *HEADER[3:]]),
        places(
            1,
            (
                "'vibration': the column is missing; did you mean ' vibration'? (the file has "
                "'press_id', 'minute', ' vibration', 'strokes', 'oil', 'failure')"
            ),
        ),
    ),
    "header repeated in the middle": (
        text((12, "press_id", "x")).replace("x,10,1.5,10,mineral,1", ",".join(HEADER)),
        places(
            5,
            (
                "line 12, 'minute': 'minute' is neither a number nor an ISO 8601 time such as "
                "2024-05-01T13:30:00"
            ),
            "line 12, 'vibration': 'vibration' is not a number",
            "line 12, 'strokes': 'strokes' is not a number",
            (
                "line 12, 'failure': 'failure' must be 0 (no failure) or 1 (failure); write "
                "the label as 0 and 1"
            ),
            "line 12, 'oil': 'oil' is not one of mineral, synthetic",
        ),
    ),
    "no known column": (
        "a,b\n1,2\n",
        "FILE: has none of the columns of schema 'press'; its columns are 'a', 'b'",
    ),
    "infinite": (
        text((4, "vibration", "inf")),
        places(1, "line 4, 'vibration': inf is outside 0 to 45 mm/s"),
    ),
    "NaN where it may not be": (
        text((4, "vibration", "NaN")),
        places(1, "line 4, 'vibration': is empty"),
    ),
    "too many missing": (
        text(column=("strokes", lambda i: "" if i < 7 else i)),
        places(1, "'strokes': 7 of 60 rows (11.7%) are empty; the schema allows 10.0%"),
    ),
    "out of range": (
        text((4, "vibration", -0.1), (9, "vibration", 45.5)),
        places(
            2,
            "line 4, 'vibration': -0.1 is outside 0 to 45 mm/s",
            "line 9, 'vibration': 45.5 is outside 0 to 45 mm/s",
        ),
    ),
    "wrong unit throughout": (
        text(column=("vibration", lambda _: 1500)),
        places(
            60,
            "line 2, 'vibration': 1500 is outside 0 to 45 mm/s",
            "line 3, 'vibration': 1500 is outside 0 to 45 mm/s",
            "line 4, 'vibration': 1500 is outside 0 to 45 mm/s",
            "line 5, 'vibration': 1500 is outside 0 to 45 mm/s",
            "line 6, 'vibration': 1500 is outside 0 to 45 mm/s",
            "and 55 more",
        ),
    ),
    "half a stroke": (
        text((4, "strokes", 2.5)),
        places(1, "line 4, 'strokes': 2.5 is not a whole number"),
    ),
    "label as words": (
        text(column=("failure", lambda i: "yes" if i % 10 == 0 else "no")),
        places(
            60,
            (
                "line 2, 'failure': 'yes' must be 0 (no failure) or 1 (failure); write the "
                "label as 0 and 1"
            ),
            (
                "line 3, 'failure': 'no' must be 0 (no failure) or 1 (failure); write the "
                "label as 0 and 1"
            ),
            (
                "line 4, 'failure': 'no' must be 0 (no failure) or 1 (failure); write the "
                "label as 0 and 1"
            ),
            (
                "line 5, 'failure': 'no' must be 0 (no failure) or 1 (failure); write the "
                "label as 0 and 1"
            ),
            (
                "line 6, 'failure': 'no' must be 0 (no failure) or 1 (failure); write the "
                "label as 0 and 1"
            ),
            "and 55 more",
        ),
    ),
    "label as a count": (
        text((4, "failure", 2)),
        places(1, "line 4, 'failure': 2 must be 0 (no failure) or 1 (failure)"),
    ),
    "no failure": (
        text(column=("failure", lambda _: 0)),
        places(1, "'failure': every label is 0; training needs rows with 0 and rows with 1"),
    ),
    "label missing": (text((4, "failure", "")), places(1, "line 4, 'failure': is empty")),
    "German date": (
        text(column=("minute", moment)).replace("2024-05-01T00:02:00", "01.05.2024 00:02"),
        places(
            2,
            (
                "line 4, 'minute': '01.05.2024 00:02' is neither a number nor an ISO 8601 "
                "time such as 2024-05-01T13:30:00"
            ),
            (
                "line 34, 'minute': '01.05.2024 00:02' is neither a number nor an ISO 8601 "
                "time such as 2024-05-01T13:30:00"
            ),
        ),
    ),
    "American date": (
        text(column=("minute", moment)).replace("2024-05-01T00:02:00", "05/01/2024 00:02"),
        places(
            2,
            (
                "line 4, 'minute': '05/01/2024 00:02' is neither a number nor an ISO 8601 "
                "time such as 2024-05-01T13:30:00"
            ),
            (
                "line 34, 'minute': '05/01/2024 00:02' is neither a number nor an ISO 8601 "
                "time such as 2024-05-01T13:30:00"
            ),
        ),
    ),
    "zones mixed": (
        text(column=("minute", lambda i: moment(i, "+02:00" if i != 2 else ""))),
        places(1, "line 4, 'minute': '2024-05-01T00:02:00' has no time zone, the others have one"),
    ),
    "zone in one": (
        text(column=("minute", lambda i: moment(i, "" if i != 2 else "Z"))),
        places(1, "line 4, 'minute': '2024-05-01T00:02:00Z' has a time zone, the others have none"),
    ),
    "number among dates": (
        text(column=("minute", lambda i: moment(i) if i != 2 else 2)),
        places(
            1,
            (
                "line 4, 'minute': '2' is neither a number nor an ISO 8601 time such as "
                "2024-05-01T13:30:00"
            ),
        ),
    ),
    "no such day": (
        text(column=("minute", moment)).replace("2024-05-01T00:02:00", "2024-02-30T00:02:00"),
        places(
            2,
            (
                "line 4, 'minute': '2024-02-30T00:02:00' is neither a number nor an ISO 8601 "
                "time such as 2024-05-01T13:30:00"
            ),
            (
                "line 34, 'minute': '2024-02-30T00:02:00' is neither a number nor an ISO 8601 "
                "time such as 2024-05-01T13:30:00"
            ),
        ),
    ),
    "a row twice": (
        text((5, "minute", 1)),
        places(1, "line 5, 'minute': has the same machine and time as line 3"),
    ),
    "clock set back": (
        text((5, "minute", 0), (6, "minute", 0)),
        places(
            2,
            "line 5, 'minute': has the same machine and time as line 2",
            "line 6, 'minute': has the same machine and time as line 2",
        ),
    ),
    "unknown category": (
        text((4, "oil", "Mineral")),
        places(
            1, "line 4, 'oil': 'Mineral' is not one of mineral, synthetic; did you mean 'mineral'?"
        ),
    ),
    "machine missing": (text((4, "press_id", "")), places(1, "line 4, 'press_id': is empty")),
    "too few rows": (
        "\n".join(text().splitlines()[:41]),
        places(1, "40 rows make 40 windows of 1 step(s); at least 50 are needed"),
    ),
    "a line break in quotes": (
        text((4, "oil", '"mine\nral"'), (9, "vibration", 99)),
        places(
            2,
            (
                "line 4, 'oil': 'mine\\nral' is not one of mineral, synthetic; did you mean "
                "'mineral'?"
            ),
            "line 10, 'vibration': 99 is outside 0 to 45 mm/s",
        ),
    ),
}

PARQUET: dict[str, tuple[bytes, str]] = {
    "CSV renamed": (
        text().encode(),
        "FILE: is not a Parquet file; if it is CSV, rename it to end in .csv",
    ),
    "Excel renamed": (
        b"PK\x03\x04" + b"\x00" * 64,
        (
            "FILE: is not a Parquet file: it is an Excel workbook or another zip archive; "
            "save it as CSV UTF-8"
        ),
    ),
    "cut off": (parquet()[:1000], "FILE: is only the beginning of a Parquet file; copy it again"),
    "damaged": (
        damaged(parquet()),
        (
            "FILE: is a damaged Parquet file (Couldn't deserialize thrift: "
            "Variable-length int over 10 bytes); write or copy it again"
        ),
    ),
    "magic only": (
        b"PAR1PAR1",
        (
            "FILE: is a damaged Parquet file (Parquet file size is 8 bytes, smaller than "
            "the size reported by footer's (827474256bytes)); write or copy it again"
        ),
    ),
    "lists": (
        parquet(vibration=[[1.5, 1.6]] * ROWS),
        (
            "FILE: the column 'vibration' holds list<element: double> values; each cell "
            "must be one number, text or time: spread them over columns of their own"
        ),
    ),
    "structs": (
        parquet(vibration=[{"x": 1.5}] * ROWS),
        (
            "FILE: the column 'vibration' holds struct<x: double> values; each cell must "
            "be one number, text or time: spread them over columns of their own"
        ),
    ),
    "bytes": (
        parquet(vibration=[b"1.5"] * ROWS),
        (
            "FILE: the column 'vibration' holds binary values; each cell must be one "
            "number, text or time: spread them over columns of their own"
        ),
    ),
    "durations": (
        parquet(vibration=pd.to_timedelta([1] * ROWS, unit="s")),
        (
            "FILE: the column 'vibration' holds duration[ns] values; each cell must be "
            "one number, text or time: spread them over columns of their own"
        ),
    ),
    "texts for numbers": (
        parquet(vibration=["1.5"] * 59 + ["high"]),
        places(1, "row 60, 'vibration': 'high' is not a number"),
    ),
    "truth values for numbers": (
        parquet(vibration=[True] * ROWS),
        places(
            60,
            "row 1, 'vibration': True is not a number",
            "row 2, 'vibration': True is not a number",
            "row 3, 'vibration': True is not a number",
            "row 4, 'vibration': True is not a number",
            "row 5, 'vibration': True is not a number",
            "and 55 more",
        ),
    ),
    "dates for numbers": (
        parquet(vibration=pd.to_datetime(["2024-05-01"] * ROWS)),
        places(
            60,
            "row 1, 'vibration': 2024-05-01 00:00:00 is not a number",
            "row 2, 'vibration': 2024-05-01 00:00:00 is not a number",
            "row 3, 'vibration': 2024-05-01 00:00:00 is not a number",
            "row 4, 'vibration': 2024-05-01 00:00:00 is not a number",
            "row 5, 'vibration': 2024-05-01 00:00:00 is not a number",
            "and 55 more",
        ),
    ),
    "nothing in a column": (
        parquet(oil=[None] * ROWS),
        places(
            60,
            "row 1, 'oil': is empty",
            "row 2, 'oil': is empty",
            "row 3, 'oil': is empty",
            "row 4, 'oil': is empty",
            "row 5, 'oil': is empty",
            "and 55 more",
        ),
    ),
    "infinite": (
        parquet(vibration=[np.inf, *[1.5] * 59]),
        places(1, "row 1, 'vibration': inf is outside 0 to 45 mm/s"),
    ),
    "no rows": (parquet(0), "FILE: names its columns but has no rows"),
}

GOOD_SCHEMA = """\
name: press
label: {column: failure}
machine: {column: press_id}
time: {column: minute}
columns:
  - {name: vibration, unit: mm/s, range: [0, 45]}
  - {name: oil, type: category, values: [mineral, synthetic]}
"""
DERIVED = "derived:\n  - {name: heat, of: [vibration, load], formula: product, range: [0, 9]}\n"


def schema(old: str = "", new: str = "", *, then: str = "") -> str:
    """Give the good schema as YAML, with one text exchanged for another and more at its end."""
    assert old in GOOD_SCHEMA
    return GOOD_SCHEMA.replace(old, new, 1) + then


SCHEMAS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "FILE: expected settings (key: value), found nothing"),
    "a list": ("- name: press\n", "FILE: expected settings (key: value), found a list"),
    "a text": ("press\n", "FILE: expected settings (key: value), found a text"),
    "tabs": (
        schema("  - {name: vibration", "\t- {name: vibration"),
        "FILE: is not valid YAML: line 6, column 1: a tab; indent with spaces",
    ),
    "unclosed bracket": (
        schema("[0, 45]}", "[0, 45}"),
        "FILE: is not valid YAML: line 6, column 48: expected ',' or ']', but got '}'",
    ),
    "a CSV file": (
        ",".join(HEADER) + "\n1,2,3,4,5,6\n",
        "FILE: expected settings (key: value), found a text",
    ),
    "Latin-1": (
        schema("press\n", "Prüfpresse\n").encode("latin-1"),
        "FILE: is not UTF-8 text; save it as UTF-8",
    ),
    "UTF-16": (GOOD_SCHEMA.encode("utf-16"), "FILE: is not UTF-8 text; save it as UTF-8"),
    "two documents": (
        GOOD_SCHEMA + "---\n" + GOOD_SCHEMA,
        "FILE: is not valid YAML: line 8, column 1: a second document begins; keep one",
    ),
    "a key twice": (
        GOOD_SCHEMA + "name: mill\n",
        "FILE: is not valid YAML: line 8, column 1: the key name is given twice",
    ),
    "unknown key": (
        schema("time:", "timestamp:"),
        mistakes("timestamp: unknown key; did you mean 'time'?"),
    ),
    "misspelt key": (
        schema("unit:", "units:"),
        mistakes("columns[0].units: unknown key; did you mean 'unit'?"),
    ),
    "no name": (schema("name: press\n", ""), mistakes("name: missing")),
    "no label": (schema("label: {column: failure}\n", ""), mistakes("label: missing")),
    "label as a text": (
        schema("{column: failure}", "failure"),
        mistakes("label: expected settings (key: value) (found 'failure')"),
    ),
    "no columns": (
        "name: press\nlabel: {column: failure}\ncolumns: []\n",
        mistakes("columns: expected 1 or more, found 0"),
    ),
    "columns as a mapping": (
        schema("columns:\n", "columns: {a: b}\nother:\n"),
        mistakes(
            "columns: expected a list",
            (
                "other: unknown key; known: columns, derived, description, label, machine, "
                "name, time, window_steps"
            ),
        ),
    ),
    "negative window": (
        schema(then="window_steps: -12\n"),
        mistakes("window_steps: Input should be greater than or equal to 1 (found -12)"),
    ),
    "no window": (
        schema(then="window_steps: 0\n"),
        mistakes("window_steps: Input should be greater than or equal to 1 (found 0)"),
    ),
    "half a step": (
        schema(then="window_steps: 1.5\n"),
        mistakes(
            "window_steps: Input should be a valid integer, got a number with a "
            "fractional part (found 1.5)"
        ),
    ),
    "negative horizon": (
        schema("{column: failure}", "{column: failure, horizon_steps: -1}"),
        mistakes("label.horizon_steps: Input should be greater than or equal to 0 (found -1)"),
    ),
    "rate in percent": (
        schema("{column: failure}", "{column: failure, rate: 5}"),
        mistakes("label.rate: Input should be less than 1 (found 5)"),
    ),
    "range reversed": (
        schema("[0, 45]", "[45, 0]"),
        mistakes("columns[0].range: the lower bound 45 is not below the upper bound 0"),
    ),
    "range of one value": (
        schema("[0, 45]", "[45, 45]"),
        mistakes("columns[0].range: the lower bound 45 is not below the upper bound 45"),
    ),
    "range without end": (
        schema("[0, 45]", "[0, .inf]"),
        mistakes("columns[0].range: the bounds 0 and inf must both be finite"),
    ),
    "range of three": (
        schema("[0, 45]", "[0, 20, 45]"),
        mistakes("columns[0].range: expected no more than 2, found 3"),
    ),
    "range as a text": (
        schema("[0, 45]", "0-45"),
        mistakes("columns[0].range: expected a list (found '0-45')"),
    ),
    "decimal commas in a range": (
        schema("[0, 45]", "[0,5, 45]"),
        mistakes("columns[0].range: expected no more than 2, found 3"),
    ),
    "no range": (
        schema(", range: [0, 45]", ""),
        mistakes(
            "columns[0]: column 'vibration' is a number: give its `range` as [lowest, highest]"
        ),
    ),
    "range of a category": (
        schema("values:", "range: [0, 1], values:"),
        mistakes("columns[1]: column 'oil' is a category: it has `values`, not a `range`"),
    ),
    "values of a number": (
        schema("range: [0, 45]", "range: [0, 45], values: [a, b]"),
        mistakes("columns[0]: column 'vibration' is a number: it has a `range`, not `values`"),
    ),
    "one value": (
        schema("[mineral, synthetic]", "[mineral]"),
        mistakes("columns[1]: column 'oil' is a category: give at least two different `values`"),
    ),
    "a value twice": (
        schema("[mineral, synthetic]", "[mineral, mineral]"),
        mistakes("columns[1]: column 'oil' is a category: give at least two different `values`"),
    ),
    "yes and no as values": (
        schema("[mineral, synthetic]", "[yes, no]"),
        mistakes(
            "columns[1].values[0]: expected a text; put it in quotes (found True)",
            "columns[1].values[1]: expected a text; put it in quotes (found False)",
        ),
    ),
    "unknown type": (
        schema("type: category", "type: enum"),
        mistakes(
            "columns[1].type: Input should be 'float', 'integer' or 'category' (found 'enum')"
        ),
    ),
    "missing in percent": (
        schema("unit: mm/s", "missing: 10"),
        mistakes("columns[0].missing: Input should be less than 1 (found 10)"),
    ),
    "no whole number": (
        schema("unit: mm/s, range: [0, 45]", "type: integer, range: [0.2, 0.8]"),
        mistakes("columns[0]: column 'vibration' is an integer: its `range` holds no whole number"),
    ),
    "a column twice": (
        schema("name: oil", "name: vibration"),
        mistakes("named more than once: 'vibration'"),
    ),
    "label among the columns": (
        schema("name: oil", "name: failure"),
        mistakes("named more than once: 'failure'"),
    ),
    "derived of an unknown column": (
        schema(then=DERIVED),
        mistakes("derived column 'heat' uses 'load', which is no number column of this schema"),
    ),
    "derived of a category": (
        schema(then=DERIVED.replace("load", "oil")),
        mistakes("derived column 'heat' uses 'oil', which is no number column of this schema"),
    ),
    "derived of one": (
        schema(then=DERIVED.replace(", load", "")),
        mistakes("derived[0].of: expected 2 or more, found 1"),
    ),
    "difference of three": (
        schema(
            then=DERIVED.replace("load", "vibration, vibration").replace("product", "difference")
        ),
        mistakes("derived[0]: derived column 'heat': a difference takes exactly two columns"),
    ),
    "unknown formula": (
        schema(then=DERIVED.replace("load", "vibration").replace("product", "power")),
        mistakes(
            "derived[0].formula: Input should be 'sum', 'difference', 'product' or "
            "'ratio' (found 'power')"
        ),
    ),
    "derived without range": (
        schema(then=DERIVED.replace("load", "vibration").replace(", range: [0, 9]", "")),
        mistakes("derived[0].range: missing"),
    ),
    "unset variable": (
        schema("mm/s", "'${NO_SUCH_UNIT}'"),
        mistakes(
            "columns[0].unit: the environment variable NO_SUCH_UNIT is not set; set it, "
            "or give a default as ${NO_SUCH_UNIT:-value}"
        ),
    ),
}


def test_there_are_as_many_as_factories_have_ways() -> None:
    """CSV, Parquet and schemas, more than a hundred in all."""
    assert len(CSV) + len(PARQUET) + len(SCHEMAS) > 100


@pytest.mark.parametrize("name", CSV)
def test_a_broken_csv_file_is_refused_in_plain_words(tmp_path: Path, name: str) -> None:
    """By the registration as by the check, which both say the same of it."""
    content, message = CSV[name]
    refused_alike(tmp_path / "press.csv", content, message)


@pytest.mark.parametrize("name", PARQUET)
def test_a_broken_parquet_file_is_refused_in_plain_words(tmp_path: Path, name: str) -> None:
    """By the registration as by the check, which both say the same of it."""
    content, message = PARQUET[name]
    refused_alike(tmp_path / "press.parquet", content, message)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_broken_schema_is_refused_in_plain_words(tmp_path: Path, name: str) -> None:
    """Every mistake, with its place in the file."""
    content, message = SCHEMAS[name]
    path = written(tmp_path / "press.yaml", content)
    assert told(lambda: load_yaml(path, DataSchema), path) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("press.xlsx", "FILE: the suffix says neither .csv nor .parquet; rename or convert it"),
        ("absent.csv", "FILE: no such file"),
        ("folder.csv", "FILE: is a directory; name the file in it"),
        ("press.csv/press.csv", "FILE: cannot be read: Not a directory"),
        (f"{'x' * 300}.csv", "FILE: cannot be read: File name too long"),
        ("round.csv", "FILE: cannot be read: Too many levels of symbolic links"),
    ],
    ids=["Excel", "absent", "directory", "below a file", "long name", "link to itself"],
)
def test_a_path_that_is_no_table_is_refused(tmp_path: Path, name: str, message: str) -> None:
    """Each says what it is."""
    for file in ("press.csv", "press.xlsx"):
        written(tmp_path / file, text())
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "round.csv").symlink_to(tmp_path / "round.csv")
    path = tmp_path / name
    assert told(lambda: check_table(path, SCHEMA), path) == message


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """What the site's account may not read; root, which may read all, is nobody for a moment."""
    path = written(tmp_path / "press.csv", text())
    path.chmod(0)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        assert told(lambda: check_table(path, SCHEMA), path) == (
            "FILE: cannot be read: Permission denied"
        )
    finally:
        os.seteuid(mine)


def refused_alike(path: Path, content: str | bytes, message: str) -> None:
    """Require that a site will not register `path`, for `message`, and that a check finds it."""
    written(path, content)
    with closing(Ledger(path.with_name("ledger.db"), site_id="factory-1")) as ledger:
        registry = Registry(ledger, path.with_name("data"), site_id="factory-1")
        register = partial(registry.register, path, SCHEMA, name="press", who="operator")
        assert told(register, path) == message
        assert registry.versions() == []
    assert list(path.with_name("data").iterdir()) == []
    if "breaks schema" not in message:
        assert told(lambda: check_table(path, SCHEMA), path) == message
        return
    report = check_table(path, SCHEMA)
    found = [violation.describe(report.place) for violation in report.violations]
    assert message.startswith(places(report.violation_count, *found).removesuffix(f"\n{ADVICE}"))


def told(act: Callable[[], object], path: Path) -> str:
    """Give what is said when `act` is refused; the file's own path becomes FILE."""
    with pytest.raises((DataError, ConfigurationError)) as caught:
        act()
    return str(caught.value).replace(str(path), "FILE")


def written(path: Path, content: str | bytes) -> Path:
    """Write a file; where it is."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
