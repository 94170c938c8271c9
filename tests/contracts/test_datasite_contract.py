"""Laws of `DataSiteInterface`, for the factory's datasite with either of its trainers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from sites import (
    FEDAVG,
    MODEL,
    PREPROCESSING,
    SCHEMA,
    SPLIT,
    TRAIN_ROWS,
    TRAINING,
    in_a_process,
    inline,
    site_settings,
    write_table,
)

from core.exceptions import ConfigurationError, DataError, DataSiteError
from core.interfaces import DataSiteInterface
from core.models import TorchModel, build_model
from core.parameters import digest
from datasite.site import FactoryDataSite

TRAINERS = [
    pytest.param(inline, id="inline"),
    pytest.param(in_a_process, id="in a process"),
]

UPDATE = {"parameters", "num_samples", "num_steps", "metrics", "datasite_id", "round_num"}


@pytest.fixture(scope="module", params=TRAINERS)
def trained_site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FactoryDataSite]:
    """A site with `press` registered, for the laws that change nothing."""
    folder = tmp_path_factory.mktemp("site")
    site = FactoryDataSite(request.param)
    site.initialize_datasite(site_settings(folder))
    site.register_data(registration(folder))
    yield site
    site.close()


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., FactoryDataSite]]:
    """Give a function that makes an empty site under `tmp_path`."""
    made: list[FactoryDataSite] = []

    def build_(name: str = "site", **changes: object) -> FactoryDataSite:
        site = FactoryDataSite(inline)
        made.append(site)
        site.initialize_datasite(site_settings(tmp_path / name, **changes))
        return site

    yield build_
    for site in made:
        site.close()


def registration(folder: Path, **columns: object) -> dict[str, Any]:
    """Give the argument of `register_data` for the readings of `write_table`."""
    file = write_table(folder / "press.csv", **columns)
    return {"name": "press", "file": file, "schema": SCHEMA}


def training(**changes: object) -> dict[str, Any]:
    """Give a `training_config`."""
    return {
        "dataset": "press",
        "split": SPLIT,
        "model": MODEL,
        "algorithm": FEDAVG,
        "training": TRAINING,
        "preprocessing": PREPROCESSING,
        **changes,
    }


def model(seed: int = 0, sensors: int = 2) -> TorchModel:
    """Give a global model."""
    return build_model(cast("Any", MODEL), sensors=sensors, window_steps=1, seed=seed)


def files_in(folder: Path) -> list[str]:
    """Name the files under `folder`, but for the ledger's own."""
    own = ("ledger", "identity")
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in files if not path.name.startswith(own))


def test_it_keeps_the_interface() -> None:
    """Every method of the contract is there."""
    assert isinstance(FactoryDataSite(), DataSiteInterface)


def test_every_mistake_of_a_configuration_is_listed_and_nothing_is_made(tmp_path: Path) -> None:
    """One error names them all, each with its path; the state folder is not made."""
    wrong = site_settings(
        tmp_path, site_id="Factory 1", listen={"port": 0}, plan_days=0, nickname="f"
    )
    with pytest.raises(ConfigurationError, match=r"4 mistake\(s\)") as caught:
        FactoryDataSite(inline).initialize_datasite(wrong)
    for path in ("site_id: ", "listen.port: ", "plan_days: ", "nickname: unknown key"):
        assert path in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_initialising_again_opens_the_kept_state(
    build: Callable[..., FactoryDataSite], tmp_path: Path
) -> None:
    """What was registered is still registered, for this object and for the next process."""
    site = build()
    site.register_data(registration(tmp_path))
    before = site.get_datasite_info()
    site.initialize_datasite(site_settings(tmp_path / "site"))
    assert site.get_datasite_info() == before
    site.close()
    assert build().get_datasite_info() == before


@pytest.mark.parametrize("spelling", ["mapping", "path", "text"])
def test_a_schema_may_be_a_mapping_or_a_file(
    build: Callable[..., FactoryDataSite], tmp_path: Path, spelling: str
) -> None:
    """The three spellings of one schema register the same dataset."""
    path = tmp_path / "press.yaml"
    path.write_text(yaml.safe_dump(SCHEMA))
    schema: Any = {"mapping": SCHEMA, "path": path, "text": str(path)}[spelling]
    site = build()
    site.register_data(registration(tmp_path) | {"schema": schema})
    (dataset,) = site.get_datasite_info()["datasets"]
    assert (dataset["name"], dataset["rows"]) == ("press", 100)


@pytest.mark.parametrize(
    "columns",
    [{"load": 11.0}, {"failure": 2}, {"heat": "hot"}],
    ids=["out of range", "no label", "no number"],
)
def test_bad_data_are_refused_and_nothing_is_kept(
    build: Callable[..., FactoryDataSite], tmp_path: Path, columns: dict[str, Any]
) -> None:
    """No dataset, no file, and the name stays free."""
    site = build()
    before = files_in(tmp_path / "site")
    with pytest.raises(DataError, match="breaks schema 'press'"):
        site.register_data(registration(tmp_path, **columns))
    assert site.get_datasite_info()["datasets"] == []
    assert files_in(tmp_path / "site") == before
    site.register_data(registration(tmp_path))


def test_what_a_registration_lacks_is_named(build: Callable[..., FactoryDataSite]) -> None:
    """Name, file and schema are all needed."""
    with pytest.raises(DataError, match=r"also give \['file', 'schema'\]"):
        build().register_data({"name": "press"})


def test_other_data_under_a_registered_name_are_its_next_version(
    build: Callable[..., FactoryDataSite], tmp_path: Path
) -> None:
    """That is what the site tells of; the first is kept beside it."""
    site = build()
    site.register_data(registration(tmp_path))
    before = files_in(tmp_path / "site")
    site.register_data(registration(tmp_path, load=1.0))
    (told,) = site.get_datasite_info()["datasets"]
    assert (told["name"], told["version"]) == ("press", 2)
    assert set(before) < set(files_in(tmp_path / "site"))


def test_an_update_has_what_the_contract_names(trained_site: FactoryDataSite) -> None:
    """60 windows in batches of 16 are 4 steps, of round 2, by factory-1."""
    update = trained_site.train_local_model(model(), training(round_num=2))
    assert update.keys() >= UPDATE
    assert (update["num_samples"], update["num_steps"]) == (TRAIN_ROWS, 4)
    assert (update["datasite_id"], update["round_num"]) == ("factory-1", 2)
    assert update["metrics"]["train_loss"] > 0
    received = model().get_parameters()
    assert {name: (t.shape, t.dtype) for name, t in update["parameters"].items()} == {
        name: (t.shape, t.dtype) for name, t in received.items()
    }


def test_training_does_not_modify_the_given_model(trained_site: FactoryDataSite) -> None:
    """The caller's model has the same bits after as before, and what came back has others."""
    given = model()
    before = digest(given.get_parameters())
    update = trained_site.train_local_model(given, training())
    assert digest(given.get_parameters()) == before
    assert digest(update["parameters"]) != before


def test_training_does_not_modify_its_configuration(trained_site: FactoryDataSite) -> None:
    """The mapping that was given is as it was."""
    given = training()
    trained_site.train_local_model(model(), given)
    assert given == training()


def test_equal_arguments_give_bit_equal_parameters(trained_site: FactoryDataSite) -> None:
    """Whatever was trained in between, and whatever state the global generator is in."""
    first = trained_site.train_local_model(model(), training())
    trained_site.train_local_model(model(seed=1), training(seed=5))
    torch.manual_seed(99)
    second = trained_site.train_local_model(model(), training())
    assert digest(first["parameters"]) == digest(second["parameters"])


@pytest.mark.parametrize("change", [{"seed": 1}, {"round_num": 1}], ids=["seed", "round"])
def test_seed_and_round_decide_the_draws(
    trained_site: FactoryDataSite, change: dict[str, int]
) -> None:
    """Another seed or another round takes the batches in another order."""
    first = trained_site.train_local_model(model(), training())
    second = trained_site.train_local_model(model(), training(**change))
    assert digest(first["parameters"]) != digest(second["parameters"])


def test_both_trainers_give_bit_equal_parameters(tmp_path: Path) -> None:
    """A federation in memory is the same experiment as one of processes."""
    found = []
    for number, trainer in enumerate((inline, in_a_process)):
        site = FactoryDataSite(trainer)
        site.initialize_datasite(site_settings(tmp_path / str(number)))
        try:
            site.register_data(registration(tmp_path))
            update = site.train_local_model(model(), training(round_num=1, seed=3))
        finally:
            site.close()
        found.append(digest(update["parameters"]))
    assert found[0] == found[1]


def test_an_unregistered_dataset_is_a_data_error(trained_site: FactoryDataSite) -> None:
    """The message says what is registered."""
    with pytest.raises(DataError, match=r"mill is not registered here; registered: press"):
        trained_site.train_local_model(model(), training(dataset="mill"))


def test_training_that_fails_is_a_datasite_error(trained_site: FactoryDataSite) -> None:
    """A model for three sensors cannot be trained on two."""
    with pytest.raises(DataSiteError, match=r"'stem\.weight'"):
        trained_site.train_local_model(model(sensors=3), training())


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"round_num": -1}, "round_num: "),
        ({"deadline_s": 0}, "deadline_s: "),
        ({"sed": 1}, "sed: "),
    ],
    ids=["round", "deadline", "unknown"],
)
def test_a_mistake_in_a_training_config_is_named(
    trained_site: FactoryDataSite, changes: dict[str, Any], path: str
) -> None:
    """It is found before anything is trained."""
    with pytest.raises(ConfigurationError, match=f"training_config.*\n  {path}"):
        trained_site.train_local_model(model(), training(**changes))


def test_the_site_says_who_it_is_and_what_it_offers(trained_site: FactoryDataSite) -> None:
    """Its name, that it is online, and the dataset with its schema."""
    found = trained_site.get_datasite_info()
    assert (found["datasite_id"], found["status"]) == ("factory-1", "ONLINE")
    (dataset,) = found["datasets"]
    assert (dataset["name"], dataset["version"], dataset["rows"]) == ("press", 1, 100)


def test_nothing_that_a_site_tells_is_derived_from_a_row(
    build: Callable[..., FactoryDataSite], tmp_path: Path
) -> None:
    """Two sites whose rows have nothing in common but their number say the same, word for word."""
    found = []
    for name, columns in (("a", {}), ("b", {"load": 1.25, "heat": 7.5, "failure": [0, 1] * 50})):
        site = build(name)
        site.register_data(registration(tmp_path, **columns))
        site.train_local_model(model(), training())
        found.append({**site.get_datasite_info(), "identity_key": "its own"})
    assert found[0] == found[1]
