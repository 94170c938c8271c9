"""What every `OrchestratorInterface` promises, over in-memory sites."""

import copy

import pytest
from federations import Federation

from core import (
    CommunicationError,
    ConfigurationError,
    ExperimentError,
    FederatedLearningError,
    OrchestratorInterface,
)


def unreachable(request: bytes, email: str) -> bytes:
    """Answer as a line that is down."""
    raise CommunicationError("connection refused")


@pytest.fixture
def orchestrator(federation: Federation) -> OrchestratorInterface:
    """The orchestrator under contract."""
    return federation.orchestrator()


def alone(federation: Federation) -> OrchestratorInterface:
    """Give an orchestrator of the same runs that reaches no site."""
    return federation.orchestrator(handlers=dict.fromkeys(federation.sites, unreachable))


def test_setup_records_a_pending_experiment_and_contacts_nobody(federation: Federation) -> None:
    """Sites are not needed to write an experiment down."""
    orchestrator = alone(federation)
    orchestrator.setup_experiment({**federation.settings(), "experiment_id": "one"})
    results = orchestrator.collect_results("one")
    assert (results["experiment_id"], results["status"]) == ("one", "PENDING")
    assert results["rounds"] == []


def test_setup_gives_an_id_of_its_own(federation: Federation) -> None:
    """Without one, the name and the time make it; twice the same settings are two runs."""
    orchestrator = alone(federation)
    for _ in range(2):
        orchestrator.setup_experiment(federation.settings())
    first, second = (row.run_id for row in federation.store.all())
    assert first != second
    assert first.startswith("test-")


def test_setup_leaves_the_configuration_alone(federation: Federation) -> None:
    """The caller's dictionary is the caller's."""
    config = {**federation.settings(), "experiment_id": "one"}
    kept = copy.deepcopy(config)
    federation.orchestrator().setup_experiment(config)
    assert config == kept


def test_setup_tells_every_mistake_and_records_nothing(federation: Federation) -> None:
    """Three mistakes, three lines."""
    config = federation.settings(rounds=0, seeds=1, training={"batch_size": "big"})
    with pytest.raises(ConfigurationError) as caught:
        federation.orchestrator().setup_experiment({**config, "experiment_id": "one"})
    assert "3 mistake(s)" in str(caught.value)
    assert all(word in str(caught.value) for word in ("rounds", "seeds", "training.batch_size"))
    assert federation.store.all() == []


def test_an_id_is_given_once(federation: Federation) -> None:
    """The first experiment is not overwritten by another of the same id."""
    orchestrator = federation.orchestrator()
    orchestrator.setup_experiment({**federation.settings(rounds=1), "experiment_id": "one"})
    with pytest.raises(ExperimentError, match="'one' exists already"):
        orchestrator.setup_experiment({**federation.settings(rounds=2), "experiment_id": "one"})
    assert orchestrator.collect_results("one")["rounds_planned"] == 1


@pytest.mark.parametrize("experiment_id", ["../one", "a/b", "/one", ".", "..", ".hidden", "a b"])
def test_an_id_that_is_no_name_is_refused(federation: Federation, experiment_id: str) -> None:
    """A run stays below the folder of the runs."""
    with pytest.raises(ConfigurationError, match="is no id for a run"):
        federation.orchestrator().setup_experiment(
            {**federation.settings(), "experiment_id": experiment_id}
        )
    assert federation.store.all() == []


@pytest.mark.parametrize("method", ["run_experiment", "collect_results"])
def test_an_unknown_id_is_said(orchestrator: OrchestratorInterface, method: str) -> None:
    """The error names it, and where to look."""
    with pytest.raises(ExperimentError, match=r"no run 'nowhere' .*orchestrator list"):
        getattr(orchestrator, method)("nowhere")


def test_running_gives_the_results_that_are_collected(federation: Federation) -> None:
    """Status, every round, and the parameters' digest."""
    results = federation.run("one", rounds=2)
    assert results["status"] == "COMPLETED"
    assert [record["round_num"] for record in results["rounds"]] == [0, 1]
    assert len(results["parameters_sha256"]) == 64
    assert federation.orchestrator().collect_results("one") == results


def test_a_completed_experiment_gives_its_results_again_and_contacts_nobody(
    federation: Federation,
) -> None:
    """Running it once more is free."""
    results = federation.run("one", rounds=1)
    assert alone(federation).run_experiment("one") == results


def test_a_run_that_fails_is_failed_and_says_why(federation: Federation) -> None:
    """The error is raised, and written down with the experiment."""
    federation.orchestrator().setup_experiment({**federation.settings(), "experiment_id": "one"})
    orchestrator = alone(federation)
    with pytest.raises(FederatedLearningError, match="factory-1: connection refused"):
        orchestrator.run_experiment("one")
    results = orchestrator.collect_results("one")
    assert results["status"] == "FAILED"
    assert "factory-1: connection refused" in results["message"]


def test_a_failed_run_can_be_run_again(federation: Federation) -> None:
    """When the sites are back, it goes on."""
    federation.orchestrator().setup_experiment(
        {**federation.settings(rounds=1), "experiment_id": "one"}
    )
    with pytest.raises(FederatedLearningError):
        alone(federation).run_experiment("one")
    assert federation.orchestrator().run_experiment("one")["status"] == "COMPLETED"


def test_a_participant_that_is_not_there_is_named(federation: Federation) -> None:
    """Two of three sites are enough for the federation, but one of the two participants is away."""
    handlers = {**federation.handlers(), "factory-2": unreachable}
    orchestrator = federation.orchestrator(handlers=handlers)
    settings = federation.settings(min_sites=2, participation={"sites": ["factory-1", "factory-2"]})
    orchestrator.setup_experiment({**settings, "experiment_id": "one"})
    with pytest.raises(CommunicationError, match="factory-2: connection refused") as caught:
        orchestrator.run_experiment("one")
    assert caught.value.exit_code == 2
