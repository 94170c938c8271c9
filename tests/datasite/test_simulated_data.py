"""The data of simulated sites: read once, kept within a bound, never others than they were."""

from pathlib import Path

import numpy as np
import pytest
import torch

from core.configuration import load_yaml
from core.exceptions import DataSiteError
from core.messages import Preprocessing, SplitSettings
from core.schema import DataSchema
from datasite.data.table import load_table
from datasite.data.windows import prepare_parts
from datasite.simulation.data import SiteData, SiteFile
from orchestrator.testbed.presets import AI4I_SCHEMA

SPLIT: SplitSettings = {"test": 0.2, "validation": 0.1, "seed": 0}
AS_IT_IS: Preprocessing = {"mean": [0.0] * 11, "scale": [1.0] * 11, "positive_weight": 1.0}
SCHEMA = load_yaml(AI4I_SCHEMA, DataSchema)


@pytest.fixture
def files(samples: list[Path], tmp_path: Path) -> dict[str, SiteFile]:
    """Give three sites with copies of the tables, to be taken away."""
    found = {}
    for path in samples:
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        found[path.stem] = SiteFile.at(copy, site_id=path.stem)
    return found


def test_a_site_has_the_parts_of_a_real_one(files: dict[str, SiteFile]) -> None:
    """The windows of each part, standardised, and how many rows there are."""
    data = SiteData(files, SCHEMA)
    table = load_table(files["factory-2"].path, SCHEMA)
    expected = prepare_parts(table, SCHEMA, SPLIT, "factory-2")
    for name in ("train", "validation", "test"):
        found = data.part("factory-2", name, SPLIT, AS_IT_IS)
        part = getattr(expected, name)
        assert np.array_equal(found.windows(found.starts).numpy(), part.x)
        assert np.array_equal(found.labels.numpy(), part.y)
    assert data.count_rows("factory-2") == len(table)


def test_a_file_is_read_once(files: dict[str, SiteFile]) -> None:
    """From the description over the statistics to all rounds: nothing is read again."""
    data = SiteData(files, SCHEMA)
    for site_id, file in files.items():
        data.count_rows(site_id)
        file.path.unlink()
    for site_id in files:
        assert len(data.features(site_id).x) == data.count_rows(site_id)
    for _ in range(2):
        for site_id in files:
            assert len(data.part(site_id, "train", SPLIT, AS_IT_IS).labels) > 0


def test_what_finds_no_room_is_read_again(files: dict[str, SiteFile]) -> None:
    """Of one site at a time all parts are at hand; the next one's turn takes its place."""
    data = SiteData(files, SCHEMA, room_bytes=0)
    before = data.part("factory-1", "train", SPLIT, AS_IT_IS)
    files["factory-1"].path.rename(files["factory-1"].path.with_suffix(".away"))
    assert len(data.part("factory-1", "test", SPLIT, AS_IT_IS).labels) > 0
    data.part("factory-2", "train", SPLIT, AS_IT_IS)
    with pytest.raises(DataSiteError, match=r"factory-1: .* changed since the run began"):
        data.part("factory-1", "train", SPLIT, AS_IT_IS)
    files["factory-1"].path.with_suffix(".away").rename(files["factory-1"].path)
    assert torch.equal(data.part("factory-1", "train", SPLIT, AS_IT_IS).rows, before.rows)


def test_the_room_holds_what_fits(files: dict[str, SiteFile]) -> None:
    """600 rows of 11 numbers, a label and a start, 60 bytes each, and what is around: two fit."""
    data = SiteData(files, SCHEMA, room_bytes=90_000)
    for site_id in files:
        data.part(site_id, "train", SPLIT, AS_IT_IS)
    for file in files.values():
        file.path.unlink()
    for site_id in ("factory-1", "factory-2", "factory-3"):  # the newest is at hand without room
        data.part(site_id, "train", SPLIT, AS_IT_IS)
    other: Preprocessing = {**AS_IT_IS, "positive_weight": 2.0}
    with pytest.raises(DataSiteError, match="factory-1"):
        data.part("factory-1", "train", SPLIT, other)
    with pytest.raises(DataSiteError, match="factory-3"):
        data.part("factory-3", "test", SPLIT, other)


def test_a_file_that_changed_is_refused(files: dict[str, SiteFile]) -> None:
    """Before the first reading as after it: by its hash, not by its age."""
    path = files["factory-3"].path
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(DataSiteError, match="factory-3"):
        SiteData(files, SCHEMA).count_rows("factory-3")
