"""`orchestrator testbed data`: what it writes, draws and says, and what it refuses."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from loguru import logger

from core.enums import DataDistribution
from orchestrator.cli.app import main
from orchestrator.testbed.ai4i import LABEL, generate_ai4i
from orchestrator.testbed.picture import draw_split
from orchestrator.testbed.samples import write_samples

Data = Callable[..., int]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Data]:
    """Give `orchestrator testbed data`, run in an empty folder; it gives its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["orchestrator", "testbed", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    yield run
    logger.remove()  # it writes to a stream that ends with the test


def size_of(picture: bytes) -> tuple[int, int]:
    """Give width and height of a PNG picture in pixels; they follow its signature and `IHDR`."""
    assert picture[:16] == b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")


@pytest.mark.parametrize("kind", ["ai4i", "vibration"])
@pytest.mark.parametrize("distribution", [each.value for each in DataDistribution])
def test_a_file_for_each_site_and_a_picture_are_written(
    data: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    distribution: str,
) -> None:
    """And nothing else; the printed table is that of the files."""
    assert data("--kind", kind, "--distribution", distribution, "--sites", "2") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    files = ["factory-1.csv", "factory-2.csv"]
    label = LABEL if kind == "ai4i" else "failure"

    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [*files, "split.png"]
    assert header.split() == ["site", "rows", "failures", "failure", "rate", "file"]
    assert lines[2] == "picture: data/split.png"
    for line, file in zip(lines, files, strict=False):
        table = pd.read_csv(tmp_path / "data" / file)
        failures = table[label].sum()
        assert line.split() == [
            file.removesuffix(".csv"),
            str(len(table)),
            str(failures),
            f"{failures / len(table):.1%}",
            f"data/{file}",
        ]


def test_the_same_seed_writes_the_same_bytes(data: Data, tmp_path: Path) -> None:
    """Files and picture; another seed writes others."""
    for folder, seed in [("a", "1"), ("b", "1"), ("c", "2")]:
        assert data("--distribution", "non_iid_label", "--seed", seed, "--out", folder) == 0
    written = [
        [path.read_bytes() for path in sorted((tmp_path / folder).iterdir())] for folder in "abc"
    ]

    assert written[0] == written[1]
    assert all(one != other for one, other in zip(written[0], written[2], strict=True))


def test_a_picture_grows_with_its_sites_and_by_the_column_of_a_feature_split() -> None:
    """A row for each site; a third panel where sites differ in a column."""
    table = generate_ai4i(1000)

    def picture(sites: int, column: str | None = None) -> tuple[int, int]:
        parts = [table.iloc[site::sites] for site in range(sites)]
        return size_of(draw_split(parts, title="a title", label=LABEL, column=column))

    (width, height), (same, higher) = picture(3), picture(10)
    assert width == same
    assert higher > height
    assert picture(3, "Torque [Nm]")[0] > width
    assert picture(3, "Type")[0] > width
    assert picture(1, "UDI") > (width, 0)
    assert picture(20, "Product ID")[1] > higher  # of a thousand names, all but a few are `others`


def test_samples_alone_come_without_a_picture(tmp_path: Path) -> None:
    """As the demonstration and the benchmarks need them."""
    paths = write_samples(
        generate_ai4i(1000), tmp_path, sites=2, distribution=DataDistribution.IID, seed=0
    )

    assert sorted(tmp_path.iterdir()) == paths


def test_the_column_of_a_feature_split_can_be_chosen(data: Data, tmp_path: Path) -> None:
    """One type a site, or by default one regime of tool wear."""
    arguments = ("--distribution", "non_iid_feature")
    assert data(*arguments, "--by", "Type", "--out", "types") == 0
    assert data(*arguments, "--out", "wear") == 0
    types, wear = (
        [pd.read_csv(tmp_path / folder / f"factory-{n}.csv") for n in (1, 2, 3)]
        for folder in ("types", "wear")
    )

    assert [part["Type"].unique().tolist() for part in types] == [["L"], ["M"], ["H"]]
    worn = [part["Tool wear [min]"] for part in wear]
    assert worn[0].max() <= worn[1].min() <= worn[1].max() <= worn[2].min()


def test_rows_and_alpha_can_be_chosen(data: Data, tmp_path: Path) -> None:
    """4 pumps for each of 2 sites have 300 of 2400 rows each; a large alpha is nearly even."""
    arguments = ("--kind", "vibration", "--sites", "2", "--rows", "2400")
    assert data(*arguments, "--distribution", "non_iid_quantity", "--alpha", "10000") == 0
    for number in (1, 2):
        table = pd.read_csv(tmp_path / "data" / f"factory-{number}.csv")
        assert set(table["pump_id"].value_counts()) == {300}
        assert 3 <= table["pump_id"].nunique() <= 5


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ("--kind vibration --source a.csv", "--source and --fetch are for --kind ai4i"),
        ("--kind vibration --fetch", "vibration data are always made"),
        ("--source a.csv --fetch", "--fetch and --source: give one of them"),
        ("--source a.csv --rows 500", "--rows is for made data"),
        ("--kind vibration --rows 2879", "each of 12 pumps 239 minutes.*ask for 2880 or more"),
        ("--alpha 1", "alpha: is for .* not for `iid`"),
        ("--by Type", "by: is for `non_iid_feature`, not for `iid`"),
        ("--distribution non_iid_feature --by Torque", "it has 'UDI', 'Product ID', 'Type'"),
    ],
)
def test_an_option_that_does_not_fit_ends_with_4(
    data: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    refusal: str,
) -> None:
    """With the reason; nothing is written."""
    assert data(*arguments.split()) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(f"error: .*{refusal}", err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ("--source a.csv", "a.csv: no such file"),
        ("--rows 150", r"site 1 of 3 would get \d rows with 'Machine failure' = 1, at least 10"),
    ],
)
def test_data_that_do_not_suffice_end_with_1(
    data: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    refusal: str,
) -> None:
    """With the site and the numbers; nothing is written."""
    assert data(*arguments.split()) == 1
    assert re.match(f"error: {refusal}", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
