"""What a file is, when it is not what its name says; each with what to do about it."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Final, NamedTuple

from core.exceptions import DataError

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES: Final = 2**20

_SAVE_AS_CSV: Final = "save it as CSV UTF-8"
_SIGNATURES: Final = (
    (b"PK\x03\x04", f"is an Excel workbook or another zip archive; {_SAVE_AS_CSV}"),
    (b"\xd0\xcf\x11\xe0", f"is an old Excel workbook (.xls); {_SAVE_AS_CSV}"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"\xff\xfe", f"is UTF-16 text; {_SAVE_AS_CSV}"),
    (b"\xfe\xff", f"is UTF-16 text; {_SAVE_AS_CSV}"),
)
_PARQUET: Final = b"PAR1"


class CsvBytes(NamedTuple):
    """What is to be known of a CSV file before its rows are read."""

    has_quotes: bool


def require_csv(path: Path) -> CsvBytes:
    """Look through a file that should be CSV.

    Raises:
        DataError: It is something else, or no UTF-8 text, or has NUL bytes, which a reader would
            drop silently with the digits behind them.
    """
    with path.open("rb") as file:
        start = file.read(8)
    for signature, found in _SIGNATURES:
        if start.startswith(signature):
            raise DataError(f"{path}: {found}")
    if start.startswith(_PARQUET):
        raise DataError(f"{path}: is a Parquet file; rename it to end in .parquet")
    return _require_text(path)


def require_parquet(path: Path) -> None:
    """Refuse a file that does not begin and end as a Parquet file does.

    Raises:
        DataError: It is something else, or was cut off.
    """
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(0, 2)
        file.seek(max(file.tell() - len(_PARQUET), 0))
        end = file.read()
    if not start.startswith(_PARQUET):
        found = next((what for mark, what in _SIGNATURES[:3] if start.startswith(mark)), None)
        if found is not None:
            raise DataError(f"{path}: is not a Parquet file: it {found}")
        raise DataError(f"{path}: is not a Parquet file; if it is CSV, rename it to end in .csv")
    if end != _PARQUET:
        raise DataError(f"{path}: is only the beginning of a Parquet file; copy it again")


def _require_text(path: Path) -> CsvBytes:
    decoder = codecs.getincrementaldecoder("utf-8")()
    has_quotes, line, is_over = False, 1, False
    with path.open("rb") as file:
        while not is_over:
            block = file.read(_BLOCK_BYTES)
            is_over = not block
            has_quotes = has_quotes or b'"' in block
            at = block.find(b"\0")
            if at >= 0:
                line += block.count(b"\n", 0, at)
                raise DataError(
                    f"{path}: line {line} has a NUL byte: the file is damaged or no text; "
                    f"{_SAVE_AS_CSV}"
                )
            try:
                decoder.decode(block, final=is_over)
            except UnicodeDecodeError as exc:
                line += exc.object.count(b"\n", 0, exc.start)
                raise DataError(
                    f"{path}: is not UTF-8 text: line {line} has the byte "
                    f"0x{exc.object[exc.start]:02x}; {_SAVE_AS_CSV}"
                ) from exc
            line += block.count(b"\n")
    return CsvBytes(has_quotes)
