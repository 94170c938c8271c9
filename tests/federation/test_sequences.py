"""Models of windows see time: pumps fail by the trend of their vibration and by nothing else."""

from pathlib import Path
from typing import Any

import pytest
from federations import APPROVE_ALL, Federation

from core.configuration import read_yaml
from core.enums import DataDistribution
from orchestrator.testbed.kinds import SampleKind
from orchestrator.testbed.samples import generate_table, write_samples

SCHEMA = Path(__file__).parents[2] / "deploy" / "schemas" / "vibration.yaml"
SITES = 2


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four pumps a site, a reading a minute."""
    table = generate_table(SampleKind.VIBRATION, rows=SITES * 4 * 720, sites=SITES, seed=0)
    return write_samples(
        table,
        tmp_path_factory.mktemp("samples"),
        sites=SITES,
        distribution=DataDistribution.IID,
        seed=0,
        kind=SampleKind.VIBRATION,
    )


def final_roc_auc(
    folder: Path, samples: list[Path], model: dict[str, Any], *, window_steps: int
) -> float:
    """Train over two sites, and judge the model on their test parts together."""
    federation = Federation(folder, policy=APPROVE_ALL)
    schema = {**read_yaml(SCHEMA), "window_steps": window_steps}
    for path in samples:
        site = federation.open_site(path.stem)
        site.register_data({"name": "vibration", "file": path, "schema": schema})
    results = federation.run(
        "one",
        dataset="vibration",
        rounds=6,
        model=model,
        training={
            "local_epochs": 3,
            "learning_rate": 0.05,
            "momentum": 0.9,
            "schedule": "cosine",
            "gradient_clip": 1.0,
        },
        evaluation={"every": 6},
    )
    roc_auc: float = results["metrics"]["final"]["global"]["roc_auc"]
    return roc_auc


@pytest.mark.parametrize("name", ["lstm", "hybrid"])
def test_a_recurrent_model_sees_the_trend(tmp_path: Path, samples: list[Path], name: str) -> None:
    """Twelve readings in their order tell rising from falling."""
    model = {"type": name, "options": {"hidden": 24, "bins": 0}}
    assert final_roc_auc(tmp_path, samples, model, window_steps=12) >= 0.95


def test_a_single_reading_tells_nothing(tmp_path: Path, samples: list[Path]) -> None:
    """The same rows one by one: the level at the end is the same whatever led to it."""
    found = final_roc_auc(tmp_path, samples, {"type": "cnn"}, window_steps=1)
    assert found == pytest.approx(0.5, abs=0.06)
