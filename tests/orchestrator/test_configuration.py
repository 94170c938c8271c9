"""Experiment and sites files: what they may ask for, and how they are told that they may not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from core import AggregationMethod, ConfigurationError, FederatedAlgorithm, ModelType, PrivacyLevel
from core.configuration import parse
from orchestrator.configuration import ExperimentConfig, load_experiment
from orchestrator.federation import load_federation


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Give the path of an experiment file to write."""
    return tmp_path / "experiment.yaml"


@pytest.fixture
def sites_file(tmp_path: Path) -> Path:
    """Give the path of a sites file to write."""
    return tmp_path / "sites.yaml"


def settings(**changes: Any) -> dict[str, Any]:
    """Give the least that an experiment must say."""
    return {"name": "test", "rounds": 2, "dataset": "ai4i", "sites": "sites.yaml", **changes}


def site(number: int = 1, **changes: Any) -> dict[str, Any]:
    """Give one entry of a sites file."""
    return {
        "site_id": f"factory-{number}",
        "url": f"http://127.0.0.1:808{number}",
        "email": "researcher@lab.example.com",
        "password": "hunter2",
        **changes,
    }


def mistakes_of(path: Path, content: object) -> str:
    """Give the message with which the file is refused."""
    path.write_text(yaml.safe_dump(content))
    load = load_experiment if path.name == "experiment.yaml" else load_federation
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_the_least_is_enough(experiment: Path) -> None:
    """Everything else has a default: FedAvg, weighted, the CNN, every site."""
    experiment.write_text(yaml.safe_dump(settings()))
    config = load_experiment(experiment)
    assert config.algorithm.name == FederatedAlgorithm.FEDAVG.value
    assert config.aggregator().method == AggregationMethod.WEIGHTED_AVERAGE.value
    assert config.model.type == ModelType.CNN.value
    assert config.privacy.level == PrivacyLevel.NONE.value
    assert (config.participation.sites, config.min_sites, config.seed) == (None, None, 0)


@pytest.mark.parametrize(
    ("sites", "expected"),
    [("all", None), (None, None), (["factory-2"], ("factory-2",))],
    ids=["all", "left out", "named"],
)
def test_participants_are_all_or_named(experiment: Path, sites: object, expected: object) -> None:
    """`all` is the word for it."""
    experiment.write_text(yaml.safe_dump(settings(participation={"sites": sites})))
    assert load_experiment(experiment).participation.sites == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algoritm": {}}, "algoritm: unknown key; did you mean 'algorithm'?"),
        (
            {"training": {"lerning_rate": 1}},
            "training.lerning_rate: unknown key; did you mean 'learning_rate'?",
        ),
        (
            {"algorithm": {"name": "fedsgd"}},
            "algorithm: there is no algorithm 'fedsgd'; did you mean 'feddyn'? there are: fedavg, ",
        ),
        (
            {"algorithm": {"aggregation": "mean"}},
            "algorithm.aggregation: there is no method 'mean'; did you mean",
        ),
        ({"model": {"type": "mlp"}}, "model.type: there is no model 'mlp'; available: cnn"),
        (
            {"privacy": {"level": "some"}},
            "privacy: there is no level 'some'; there are: none, basic, differential_privacy",
        ),
        (
            {"algorithm": {"name": "fedprx"}},
            "algorithm: there is no algorithm 'fedprx'; did you mean",
        ),
        ({"algorithm": {"name": "fedprox", "mu": -1}}, "algorithm.mu: Input should be greater"),
        ({"algorithm": {"name": "fedprox", "nu": 1}}, "algorithm.nu: fedprox has no such option"),
        (
            {"algorithm": {"name": "fedavg", "aggregation": "medain"}},
            "algorithm.aggregation: there is no method 'medain'; did you mean 'median'?",
        ),
        (
            {"privacy": {"level": "basic", "clip_norm": 0}},
            "privacy.clip_norm: Input should be greater than 0",
        ),
        (
            {"privacy": {"level": "basic", "epsilon": 1}},
            "privacy.epsilon: basic has no such option; there are: clip_norm, minimum_count",
        ),
        ({"privacy": {"level": "differential_privacy"}}, "privacy.epsilon: missing"),
        (
            {"privacy": {"level": "basic"}, "compression": "int8"},
            "compression: int8 with basic: what is rounded off in one round is sent with a later",
        ),
        (
            {"participation": {"sites": ["factory-1", "factory-2"]}, "min_sites": 3},
            "min_sites is 3, but only 2 sites participate",
        ),
        (
            {"participation": {"sites": ["factory-1", "factory-1"]}},
            "participation.sites: name each once",
        ),
        ({"participation": {"sites": []}}, "participation.sites: name each once, and at least one"),
        (
            {"participation": {"sites": "factory-1"}},
            "participation.sites: expected a list",
        ),
        ({"min_sites": 0}, "min_sites: Input should be greater than or equal to 1"),
        ({"split": {"test": 0.5, "validation": 0.5}}, "split: test and validation together leave"),
        ({"split": {"test": 0.0}}, "split.test: Input should be greater than 0"),
        ({"training": {"optimizer": "adam", "momentum": 0.9}}, "training: momentum belongs to sgd"),
        ({"training": {"momentum": 1.0}}, "training.momentum: Input should be less than 1"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: Input should be greater"),
        ({"limits": {"call_s": float("inf")}}, "limits.call_s: Input should be a finite number"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate: Input should be"),
        ({"seed": 2**63}, "seed: Input should be less than or equal to 9007199254740992"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"rounds": 0}, "rounds: Input should be greater than or equal to 1"),
        ({"name": "../up"}, "name: String should match pattern"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_an_experiment_that_cannot_be_run_is_refused(
    experiment: Path, changes: dict[str, Any], said: str
) -> None:
    """Before anything is started, with the place in the file and what would do."""
    message = mistakes_of(experiment, settings(**changes))
    assert said in message
    assert "1 mistake(s)" in message


def test_sites_are_read_in_the_order_of_the_file(sites_file: Path) -> None:
    """With what it takes to log in at each."""
    sites_file.write_text(yaml.safe_dump({"sites": [site(2), site(1)]}))
    federation = load_federation(sites_file)
    assert [address.site_id for address in federation.sites] == ["factory-2", "factory-1"]
    assert federation.sites[1].credentials() == {
        "site_id": "factory-1",
        "email": "researcher@lab.example.com",
        "password": "hunter2",
    }


def test_a_password_is_not_printed_with_the_configuration(sites_file: Path) -> None:
    """Neither by `repr` nor by `str`."""
    sites_file.write_text(yaml.safe_dump({"sites": [site()]}))
    federation = load_federation(sites_file)
    assert "hunter2" not in f"{federation!r} {federation}"


def test_a_password_of_digits_comes_from_its_variable(
    sites_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the text that it is, its leading zero too."""
    monkeypatch.setenv("TEST_SITE_PASSWORD", "01234567")
    sites_file.write_text(yaml.safe_dump({"sites": [site(password="${TEST_SITE_PASSWORD}")]}))
    assert load_federation(sites_file).sites[0].credentials()["password"] == "01234567"


def test_a_password_file_starts_at_the_sites_file(
    sites_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is given, and without the line end that editors add."""
    (sites_file.parent / "secrets").mkdir()
    (sites_file.parent / "secrets" / "one").write_text("hunter2\n")
    entry = site(password_file="secrets/one")
    del entry["password"]
    sites_file.write_text(yaml.safe_dump({"sites": [entry]}))
    monkeypatch.chdir("/")
    (address,) = load_federation(sites_file).sites
    assert address.password_file == sites_file.parent / "secrets" / "one"
    assert address.credentials()["password"] == "hunter2"


def test_an_absolute_password_file_is_left_as_it_is(sites_file: Path, tmp_path: Path) -> None:
    """As Docker's secrets are."""
    entry = site(password_file=str(tmp_path / "elsewhere"))
    del entry["password"]
    sites_file.write_text(yaml.safe_dump({"sites": [entry]}))
    assert load_federation(sites_file).sites[0].password_file == tmp_path / "elsewhere"


def test_an_authority_starts_at_the_sites_file(
    sites_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the password's file, and it goes where the password goes; other sites have none."""
    secured = site(url="https://factory-1:8443", ca_file="authority/ca.crt")
    elsewhere = site(2, url="https://factory-2:8443", ca_file="/etc/ssl/lab.crt")
    sites_file.write_text(yaml.safe_dump({"sites": [secured, elsewhere, site(3)]}))
    monkeypatch.chdir("/")
    one, two, three = load_federation(sites_file).sites
    assert one.ca_file == sites_file.parent / "authority" / "ca.crt"
    assert one.credentials()["ca_file"] == str(one.ca_file)
    assert two.ca_file == Path("/etc/ssl/lab.crt")
    assert three.ca_file is None
    assert "ca_file" not in three.credentials()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"\xff\xfe", "it is not UTF-8 text")],
    ids=["missing", "no text"],
)
def test_a_password_file_that_cannot_be_read_is_told(
    sites_file: Path, content: bytes | None, said: str
) -> None:
    """The error names site and file, and shows nothing of it."""
    if content is not None:
        (sites_file.parent / "one").write_bytes(content)
    entry = site(password_file="one")
    del entry["password"]
    sites_file.write_text(yaml.safe_dump({"sites": [entry]}))
    (address,) = load_federation(sites_file).sites
    with pytest.raises(ConfigurationError, match=rf"factory-1: password_file .*one .*{said}"):
        address.credentials()


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ([], "sites: expected 1 or more, found 0"),
        ([site(1), site(2), site(1)], "sites: named more than once: factory-1"),
        ([site(password_file="x")], "sites[0]: give either `password`"),
        ([{k: v for k, v in site().items() if k != "password"}], "sites[0]: give either"),
        ([site(site_id="Factory 1")], "sites[0].site_id: String should match pattern"),
        ([site(email="nobody")], "sites[0].email: value is not a valid email address"),
        ([site(pasword="hunter2")], "sites[0].pasword: unknown key; did you mean 'password'?"),
        ([site(ca_file="ca.crt")], "sites[0]: a `ca_file` is for https; the url is http://"),
    ],
    ids=["none", "twice", "both passwords", "no password", "name", "e-mail", "typo", "no https"],
)
def test_a_sites_file_with_a_mistake_is_refused(
    sites_file: Path, sites: list[dict[str, Any]], said: str
) -> None:
    """With the place in the file, and never with a password."""
    message = mistakes_of(sites_file, {"sites": sites})
    assert said in message
    assert "1 mistake(s)" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8081",
        "ftp://factory-1",
        "http://",
        "http://:8081",
        "http://factory-1:port",
        "http://factory-1:99999",
        "http://factory-1:0",
        "http://factory 1",
        "http://[::1",
        "https://factory-1/path",
        "https://factory-1?x=1",
        "https://factory-1/#x",
        "",
    ],
)
def test_a_bad_url_is_told_with_an_example(sites_file: Path, url: str) -> None:
    """Before it is tried."""
    message = mistakes_of(sites_file, {"sites": [site(url=url)]})
    assert f"sites[0].url: {url!r} is no address of a site; write http://host:port" in message


def test_a_url_with_an_account_is_refused_and_not_shown(sites_file: Path) -> None:
    """A password in a URL would be in every log."""
    message = mistakes_of(sites_file, {"sites": [site(url="http://me:hunter2@factory-1")]})
    assert "sites[0].url: a URL holds no account" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "url", ["http://factory-1", "https://factory-1.example.com:9443/", "http://[::1]:8081"]
)
def test_a_good_url_is_kept_as_it_is(sites_file: Path, url: str) -> None:
    """Host names, ports and IPv6 addresses."""
    sites_file.write_text(yaml.safe_dump({"sites": [site(url=url)]}))
    assert load_federation(sites_file).sites[0].url == url


def test_the_sites_file_is_kept_with_its_whole_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that was started in one folder can be resumed from another."""
    monkeypatch.chdir(tmp_path)
    settings = {"name": "x", "rounds": 1, "dataset": "d", "sites": "sites.yaml"}
    config = parse(settings, ExperimentConfig, source="test")
    assert config.sites == tmp_path / "sites.yaml"


def test_a_start_is_kept_with_its_whole_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that the run's record says which file it was, from whatever folder one looks."""
    monkeypatch.chdir(tmp_path)
    config = parse(settings(model={"start": "model.safetensors"}), ExperimentConfig, source="test")
    assert config.model.start == tmp_path / "model.safetensors"
    assert parse(settings(), ExperimentConfig, source="test").model.start is None
