"""Download the published AI4I file, checked by its SHA-256."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from pathlib import Path

import httpx

from core.exceptions import CommunicationError, DataError

AI4I_URL = (
    "https://archive.ics.uci.edu/static/public/601/ai4i+2020+predictive+maintenance+dataset.zip"
)
AI4I_SHA256 = "59db4f1d9c34c58136d89e5a006ec190dcea19e9dbea74f6b3b0c6f22a44d183"
"""Of the CSV file, not of the archive around it."""

MAX_SIZE_BYTES = 10_000_000
"""The file has 0.5 MB: what is much larger is something else, and need not be read to its end."""

_BY_HAND = "or download the CSV file with a browser and name it on the command line"


def fetch_ai4i(
    destination: Path,
    url: str = AI4I_URL,
    *,
    sha256: str = AI4I_SHA256,
    timeout_s: float = 30.0,
) -> Path:
    """Download the CSV file, plain or in a zip archive, to `destination`, and give that path.

    A destination that is already the right file is not downloaded again. It is written whole or
    not at all; a wrong file that stands there is only replaced by the right one.

    Args:
        destination: The file to write; its folder is made.
        url: Of the CSV file, or of a zip archive that holds it.
        sha256: Of the CSV file, in hexadecimal.
        timeout_s: For each wait on the network, not for the whole download.

    Raises:
        CommunicationError: The server was not reached or refused.
        DataError: It answered something else, or the file cannot be written.
    """
    if destination.is_file() and _sha256(destination.read_bytes()) == sha256:
        return destination
    content = _extract(_download(url, timeout_s), url)
    found = _sha256(content)
    if found != sha256:
        raise DataError(
            f"{url}: is not the expected file: SHA-256 {found}, expected {sha256}; nothing was "
            f"written. Was it changed on the way? Try again, {_BY_HAND}"
        )
    _write(destination, content)
    return destination


def _download(url: str, timeout_s: float) -> bytes:
    content = bytearray()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=timeout_s) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_SIZE_BYTES:
                    raise DataError(f"{url}: is larger than {MAX_SIZE_BYTES} bytes; is it AI4I?")
    except httpx.HTTPStatusError as exc:
        status = f"{exc.response.status_code} {exc.response.reason_phrase}"
        raise CommunicationError(
            f"{url}: the server answered {status}; give another url, {_BY_HAND}"
        ) from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise CommunicationError(
            f"{url}: could not be downloaded ({exc}); check the network and try again, {_BY_HAND}"
        ) from exc
    return bytes(content)


def _extract(content: bytes, url: str) -> bytes:
    """Give the one CSV file of a zip archive, or `content` itself when it is no archive."""
    if not content.startswith(b"PK"):
        return content
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(".csv")]
            if len(names) != 1:
                raise DataError(f"{url}: the archive holds {len(names)} CSV files, expected one")
            with archive.open(names[0]) as file:
                return file.read(MAX_SIZE_BYTES)
    except zipfile.BadZipFile as exc:
        raise DataError(f"{url}: is a broken zip archive ({exc}); try again") from exc


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(destination: Path, content: bytes) -> None:
    """Write beside the destination, then rename, so that no reader ever sees half a file."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=destination.parent, prefix=f".{destination.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(destination)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise DataError(f"{destination}: cannot be written: {exc.strerror}") from exc
