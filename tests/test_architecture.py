"""The house rules that no type checker sees: who imports whom, and what the public names are."""

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import core
from core import (
    AggregationError,
    CommunicationError,
    ConfigurationError,
    DataError,
    DataSiteError,
    ExperimentError,
    FederatedLearningError,
    ModelError,
    SecurityError,
    exceptions,
)
from core.configuration import load_yaml
from core.schema import DataSchema
from orchestrator.configuration import load_experiment

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "datasite", "orchestrator")

PYSYFT_EDGES = {
    "datasite/pysyft/accounts.py",
    "datasite/pysyft/datasets.py",
    "datasite/pysyft/edge.py",
    "datasite/pysyft/hardened.py",
    "datasite/pysyft/opening.py",
    "datasite/pysyft/roles.py",
    "orchestrator/communication/pysyft.py",
}
PATCHES = "core/pysyft_patches.py"
SIMULATION_BRIDGE = "orchestrator/communication/simulated.py"

PUBLIC_NAMES = [
    "ModelInterface",
    "FederatedAlgorithmInterface",
    "DataSiteInterface",
    "OrchestratorInterface",
    "MetricsCollectorInterface",
    "CommunicationInterface",
    "FederatedAlgorithm",
    "ModelType",
    "DataDistribution",
    "ExperimentStatus",
    "DataSiteStatus",
    "AggregationMethod",
    "PrivacyLevel",
    "FederatedLearningError",
    "ModelError",
    "DataSiteError",
    "CommunicationError",
    "AggregationError",
    "ExperimentError",
    "ConfigurationError",
    "SecurityError",
    "DataError",
]

ENUMERATIONS = {
    "FederatedAlgorithm": {
        "FEDAVG": "fedavg",
        "FEDPROX": "fedprox",
        "FEDDYN": "feddyn",
        "FEDNOVA": "fednova",
    },
    "ModelType": {"CNN": "cnn", "LSTM": "lstm", "HYBRID": "hybrid"},
    "DataDistribution": {
        "IID": "iid",
        "NON_IID_QUANTITY": "non_iid_quantity",
        "NON_IID_FEATURE": "non_iid_feature",
        "NON_IID_LABEL": "non_iid_label",
    },
    "ExperimentStatus": {"PENDING": 1, "RUNNING": 2, "COMPLETED": 3, "FAILED": 4, "CANCELLED": 5},
    "DataSiteStatus": {"OFFLINE": 1, "ONLINE": 2, "BUSY": 3, "ERROR": 4},
    "AggregationMethod": {
        "WEIGHTED_AVERAGE": "weighted_average",
        "SIMPLE_AVERAGE": "simple_average",
        "MEDIAN": "median",
    },
    "PrivacyLevel": {
        "NONE": "none",
        "BASIC": "basic",
        "DIFFERENTIAL_PRIVACY": "differential_privacy",
        "SECURE_AGGREGATION": "secure_aggregation",
    },
}

INTERFACES = {
    "ModelInterface": {
        "get_parameters": [],
        "set_parameters": ["parameters"],
        "forward": ["x"],
    },
    "FederatedAlgorithmInterface": {
        "aggregate": ["client_updates"],
        "configure_client_training": ["round_num"],
        "update_algorithm_state": ["client_updates"],
    },
    "DataSiteInterface": {
        "initialize_datasite": ["config"],
        "register_data": ["data"],
        "train_local_model": ["global_model", "training_config"],
        "get_datasite_info": [],
    },
    "OrchestratorInterface": {
        "setup_experiment": ["config"],
        "run_experiment": ["experiment_id"],
        "collect_results": ["experiment_id"],
    },
    "MetricsCollectorInterface": {
        "collect_round_metrics": ["round_num", "global_model", "client_updates"],
        "collect_experiment_metrics": ["experiment_results"],
        "export_metrics": ["filepath"],
    },
    "CommunicationInterface": {
        "connect_to_datasite": ["datasite_url", "credentials"],
        "send_model": ["model_parameters", "datasite_id"],
        "request_training": ["training_config", "datasite_id"],
        "disconnect_from_datasite": ["datasite_id"],
    },
}

# Exit code and whether another try may help.
ERRORS: dict[type[FederatedLearningError], tuple[int, bool]] = {
    FederatedLearningError: (1, False),
    ModelError: (1, False),
    DataSiteError: (1, False),
    CommunicationError: (2, True),
    AggregationError: (1, False),
    ExperimentError: (1, False),
    ConfigurationError: (4, False),
    SecurityError: (1, False),
    DataError: (1, False),
}


def sources(*packages: str) -> list[Path]:
    """Give every module of the packages."""
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Give the full name of everything that a module imports, wherever in it that happens."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(module: str) -> set[str]:
    """Name the files of the packages that import `module` or something in it."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in sources(*PACKAGES)
        if any(f"{name}.".startswith(f"{module}.") for name in imports(path))
    }


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("datasite", "orchestrator"),
        ("orchestrator", "datasite"),
        ("core", "datasite"),
        ("core", "orchestrator"),
    ],
)
def test_no_package_imports_what_is_above_or_beside_it(package: str, forbidden: str) -> None:
    """Sites and orchestrator know `core` and not each other; `core` knows neither."""
    above = {file for file in importers(forbidden) if file.startswith(f"{package}/")}
    assert above <= {SIMULATION_BRIDGE}


def test_simulated_sites_are_reached_over_one_bridge() -> None:
    """It knows the door of the simulation, and nothing of a site behind that; it is loaded late."""
    known = {name for name in imports(ROOT / SIMULATION_BRIDGE) if name.startswith("datasite.")}
    assert known == {"datasite.simulation.Setup", "datasite.simulation.SimulatedFederation"}
    bridge = SIMULATION_BRIDGE.removesuffix(".py").replace("/", ".")
    assert importers(bridge) == {"orchestrator/cli/app.py"}
    assert imported_with("orchestrator.experiment", ("datasite",)) == []


def test_pysyft_is_imported_at_its_two_edges_only() -> None:
    """What is below and above the edges must work, and be testable, without PySyft."""
    assert importers("syft") == PYSYFT_EDGES | {PATCHES}


def test_the_corrections_to_pysyft_are_imported_at_its_two_edges_only() -> None:
    """Importing them changes PySyft for the whole process; each edge does."""
    found = importers("core.pysyft_patches")
    assert {"datasite/pysyft/edge.py", "orchestrator/communication/pysyft.py"} <= found
    assert found <= PYSYFT_EDGES


def test_a_sites_pysyft_edge_is_entered_by_one_door() -> None:
    """`datasite.server` imports PySyft as quickly as can be; another way in would not."""
    outside = importers("datasite.pysyft") - PYSYFT_EDGES
    assert outside == {"datasite/server.py"}
    types_alone = {"datasite/routes.py"}
    assert importers("datasite.server") - types_alone == {"datasite/serving.py"}


@pytest.mark.parametrize("module", ["pickle", "dill", "cloudpickle", "marshal", "shelve"])
def test_nothing_unpickles(module: str) -> None:
    """Bytes from elsewhere never become code."""
    assert importers(module) == set()


@pytest.mark.parametrize(("owner", "function"), [("yaml", "load"), ("torch", "load")])
def test_no_loader_that_runs_code_is_called(owner: str, function: str) -> None:
    """`yaml.load` and `torch.load` can be made to run what a file says."""
    called = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) == (owner, function)
    ]
    assert called == []


@pytest.mark.parametrize("builtin", ["eval", "exec", "compile", "__import__"])
def test_no_text_is_run_as_code(builtin: str) -> None:
    """None of Python's four doors from text to code is used."""
    called = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == builtin
    ]
    assert called == []


def test_weights_only_is_never_switched_off() -> None:
    """PyTorch's own guard against pickles is not disarmed anywhere."""
    assert not [path for path in sources(*PACKAGES) if "weights_only" in path.read_text()]


def test_core_gives_exactly_the_names_of_its_specification() -> None:
    """`from core import *` gives 22 names, no more and no fewer."""
    assert len(PUBLIC_NAMES) == 22
    assert sorted(core.__all__) == sorted(PUBLIC_NAMES)
    assert all(hasattr(core, name) for name in PUBLIC_NAMES)


@pytest.mark.parametrize("name", ENUMERATIONS)
def test_an_enumeration_has_exactly_its_specified_members(name: str) -> None:
    """Names, values and order are what files and messages spell."""
    enumeration = getattr(core, name)
    found = {member.name: member.value for member in enumeration}
    assert list(found.items()) == list(ENUMERATIONS[name].items())
    assert len(enumeration.__members__) == len(found)  # no aliases


@pytest.mark.parametrize("name", INTERFACES)
def test_an_interface_has_exactly_its_specified_methods(name: str) -> None:
    """The abstract methods, and their parameters by name and order, are the specification's."""
    interface = getattr(core, name)
    found = {
        method: list(inspect.signature(getattr(interface, method)).parameters)[1:]
        for method in interface.__abstractmethods__
    }
    assert found == INTERFACES[name]
    public = {method for method in vars(interface) if not method.startswith("_")}
    assert public == set(INTERFACES[name])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_a_public_error_ends_a_command_as_specified(error: type[FederatedLearningError]) -> None:
    """Each is a `FederatedLearningError` with its own exit code and its own answer to a retry."""
    assert issubclass(error, FederatedLearningError)
    assert (error.exit_code, error.retryable) == ERRORS[error]
    raised = error("what happened", site_id="factory-1", round_num=3)
    assert (str(raised), raised.site_id, raised.round_num) == ("what happened", "factory-1", 3)


def test_the_nine_public_errors_catch_every_error() -> None:
    """Each finer class refines one of the nine beyond the common base."""
    finer = [
        error
        for error in vars(exceptions).values()
        if isinstance(error, type) and issubclass(error, FederatedLearningError)
    ]
    families = tuple(error for error in ERRORS if error is not FederatedLearningError)
    assert len(finer) > len(ERRORS)
    assert all(issubclass(e, families) for e in finer if e is not FederatedLearningError)


@pytest.mark.parametrize("module", ["core", "datasite.cli.app", "orchestrator.cli.app"])
def test_importing_a_command_is_quick(module: str) -> None:
    """PySyft takes seconds and PyTorch one; `--help` must wait for neither."""
    slow = ("syft", "torch", "pandas", "sqlalchemy", "httpx", "pydantic", "cryptography")
    assert imported_with(module, slow) == []


def test_asking_who_a_site_is_does_without_pysyft_and_pytorch() -> None:
    """Whoever watches sites asks often, and may be a small process."""
    module = "orchestrator.communication.channel"
    assert imported_with(module, ("syft", "torch", "pandas", "pydantic")) == []


def test_the_operators_commands_do_without_pytorch_and_pandas() -> None:
    """To list or approve a plan reads a few rows; it must not load a training stack for them."""
    assert imported_with("datasite.records", ("syft", "torch", "pandas", "fastapi")) == []


def imported_with(module: str, slow: tuple[str, ...]) -> list[str]:
    """Give which of `slow` a fresh process has loaded once it imported `module`."""
    loaded = f"[m for m in {slow!r} if m in sys.modules]"
    script = f"import json, sys, {module}; print(json.dumps({loaded}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "deploy" / "schemas").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_schema_in_deploy_is_valid(path: Path) -> None:
    """What people copy from must load; the file says the name it is known by."""
    assert load_yaml(path, DataSchema).name == path.stem


@pytest.mark.parametrize(
    "path", sorted((ROOT / "deploy" / "experiments").glob("*.yaml")), ids=lambda path: path.stem
)
def test_an_experiment_in_deploy_is_valid(path: Path) -> None:
    """What people copy from must load; the file says the name it is known by."""
    assert load_experiment(path).name == path.stem


@pytest.mark.parametrize("folder", ["schemas", "experiments"])
def test_deploy_has_examples(folder: str) -> None:
    """An empty folder would make the two claims above empty too."""
    assert list((ROOT / "deploy" / folder).glob("*.yaml"))


def test_every_test_that_the_threat_model_names_exists() -> None:
    """An answer to a threat is shown by a test that can be run, or it is none."""
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", text))
    assert len(named) > 50
    sources = {
        file: (ROOT / "tests" / file).read_text(encoding="utf-8")
        for file in {file for file, _ in named}
    }
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in sources[file]]
    assert missing == []
