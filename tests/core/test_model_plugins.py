"""Third parties' models: found by one registration, covered by the code hash, harmless if broken.

Each test puts packages into a folder as `pip install` would leave them, and asks a fresh process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from core.models import describe_models
from core.models.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")

MY_MODEL = '''
import torch
from torch import nn
from core.models import Option, TorchModel

class Mine(TorchModel):
    """The mean of each sensor, in a linear head.

    More that a list has no room for.
    """
    OPTIONS = {"width": Option(default=3, minimum=1, maximum=9)}

    def __init__(self, *, sensors, window_steps, classes, width):
        super().__init__()
        self.stem = nn.Linear(sensors, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.stem(x).mean(dim=1))
'''

HASH = "from core.codehash import installed_code_hash as h; answer = h()"


def install(folder: Path, name: str, files: dict[str, str], models: dict[str, str]) -> Path:
    """Leave a package in `folder`: its modules, and the record by which it registers `models`."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    record = folder / f"{name}-1.0.dist-info"
    record.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    (record / "METADATA").write_text(metadata, encoding="utf-8")
    lines = ["[federated_maintenance.models]", *(f"{k} = {v}" for k, v in models.items())]
    (record / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def with_path(folder: Path) -> dict[str, str]:
    """Give the environment of a process that finds what is in `folder`."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def answer_of(folder: Path, script: str) -> Any:
    """Run `script` with what is installed in `folder`; the value that it calls `answer`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{script}\nprint(json.dumps(answer))"],
        cwd=ROOT,
        env=with_path(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_file_and_one_registration_make_a_model(tmp_path: Path) -> None:
    """It is listed, described, built from a seed and judged by its options, as ours are."""
    install(tmp_path, "my-model", {"my_model.py": MY_MODEL}, {"mine": "my_model:Mine"})
    script = """
import torch
from core import ConfigurationError
from core.models import *
from core.parameters import digest
spec = {"type": "mine", "options": {"width": 5}}
start = [initial_parameters(spec, sensors=4, window_steps=6, seed=s) for s in (1, 1, 2)]
model = load_model(spec, start[0], sensors=4, window_steps=6)
mine = describe_models()[-1]
try:
    build_model({"type": "mine", "options": {"width": 10}}, sensors=4, window_steps=6)
except ConfigurationError as exc:
    refusal = str(exc)
answer = {
    "available": available_models(),
    "broken": broken_models(),
    "described": [mine.name, mine.summary, mine.source, list(mine.options)],
    "logits": list(model(torch.zeros(2, 6, 4)).shape),
    "starts": len({digest(parameters) for parameters in start}),
    "refusal": refusal,
}
"""
    assert answer_of(tmp_path, script) == {
        "available": ["cnn", "hybrid", "lstm", "mine"],
        "broken": {},
        "described": [
            "mine",
            "The mean of each sensor, in a linear head.",
            "my-model 1.0",
            ["width"],
        ],
        "logits": [2, 2],
        "starts": 2,
        "refusal": "model 'mine': option 'width' is 10, expected a whole number from 1 to 9",
    }


def test_a_built_in_model_is_built_without_a_look_at_third_parties(tmp_path: Path) -> None:
    """Only an unknown name, or the wish for a list, imports what others wrote."""
    install(tmp_path, "my-model", {"my_model.py": MY_MODEL}, {"mine": "my_model:Mine"})
    script = """
from core.models import available_models, build_model
build_model({"type": "cnn", "options": {}}, sensors=4, window_steps=6)
before = "my_model" in sys.modules
available_models()
answer = [before, "my_model" in sys.modules]
"""
    assert answer_of(tmp_path, script) == [False, True]


BROKEN = {
    "absent": ("no_such_module:Model", "no source of module 'no_such_module' is found"),
    "compiled": ("math:sin", "no source of module 'math' is found"),
    "no-module": (":Model", "no source of module '' is found"),
    "no-class": ("bad_attributes:Missing", "AttributeError: .*'Missing'"),
    "syntax": ("bad_syntax:Model", "importing it failed: SyntaxError"),
    "crash": ("bad_crash:Model", "importing it failed: ZeroDivisionError: division by zero"),
    "exit": ("bad_exit:Model", "importing it failed: SystemExit: 3"),
    "function": ("bad_attributes:function", "no subclass of core.models.TorchModel"),
    "module": ("bad_attributes:Plain", "no subclass of core.models.TorchModel"),
    "abstract": ("bad_attributes:Abstract", r"lacks the method\(s\) forward"),
    "options": ("bad_attributes:Options", "OPTIONS are no mapping of names to"),
    "default": ("bad_attributes:Default", "the default of its option 'width' is out of range"),
    "signature": ("bad_attributes:Signature", "must take sensors, window_steps, classes by name"),
    "elsewhere": ("bad_attributes:CNN", "defined in 'core.models.cnn', which the code hash does"),
    "cnn": ("my_model:Mine", "the name is a built-in model's"),
    "twice": ("my_model:Mine", "2 models are registered by this name"),
}

BAD_ATTRIBUTES = """
from torch import nn
from core.models import Option, TorchModel
from core.models.cnn import CNN

def function(**sizes): ...
class Plain(nn.Module): ...
class Abstract(TorchModel): ...
class Complete(TorchModel):
    def __init__(self, **sizes): super().__init__()
    def forward(self, x): return x
class Options(Complete): OPTIONS = {"width": 3}
class Default(Complete): OPTIONS = {"width": Option(default=0, minimum=1, maximum=9)}
class Signature(Complete):
    def __init__(self, sensors, steps): super().__init__()
"""


@pytest.fixture(scope="module")
def beside_broken_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with every broken model, and a sound one, has to say."""
    folder = tmp_path_factory.mktemp("broken")
    files = {
        "my_model.py": MY_MODEL,
        "bad_attributes.py": BAD_ATTRIBUTES,
        "bad_syntax.py": "class Model(:\n",
        "bad_crash.py": "1 / 0\n",
        "bad_exit.py": "raise SystemExit(3)\n",
    }
    install(folder, "broken", files, {name: value for name, (value, _) in BROKEN.items()})
    install(folder, "sound", {}, {"mine": "my_model:Mine", "twice": "my_model:Mine"})
    script = f"""
from core import ConfigurationError
from core.models import *

def origin(name):
    spec = {{"type": name, "options": {{}}}}
    return type(build_model(spec, sensors=4, window_steps=6)).__module__

refusals = {{}}
for name in {[name for name in BROKEN if name != "cnn"]!r}:
    try:
        origin(name)
    except ConfigurationError as exc:
        refusals[name] = str(exc)
{HASH}
answer = {{
    "hash": answer,
    "refusals": refusals,
    "broken": broken_models(),
    "available": available_models(),
    "described": [model.name for model in describe_models()],
    "built": [origin("cnn"), origin("mine")],
}}
"""
    answers: dict[str, Any] = answer_of(folder, script)
    return answers


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_reported_with_its_reason(
    beside_broken_models: dict[str, Any], name: str
) -> None:
    """The reason names the entry point and the package, for whoever must mend it."""
    value, reason = BROKEN[name]
    found = beside_broken_models["broken"][name]
    assert re.search(reason, found)
    assert value in found
    assert "broken 1.0" in found or name == "twice"


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "cnn"])
def test_to_ask_for_a_broken_model_is_a_configuration_error(
    beside_broken_models: dict[str, Any], name: str
) -> None:
    """It is told apart from a misspelt one."""
    start = f"model type '{name}' is registered and cannot be used: "
    assert beside_broken_models["refusals"][name].startswith(start)


def test_a_broken_model_breaks_no_other(beside_broken_models: dict[str, Any]) -> None:
    """Built-in and sound models are listed and built, and a built-in name keeps its meaning."""
    assert beside_broken_models["available"] == ["cnn", "hybrid", "lstm", "mine"]
    assert beside_broken_models["described"] == ["cnn", "hybrid", "lstm", "mine"]
    assert beside_broken_models["built"] == ["core.models.cnn", "my_model"]
    assert len(beside_broken_models["hash"]) == 64


def test_the_code_hash_changes_with_a_registered_model(tmp_path: Path) -> None:
    """To install one, to change one byte of it, or to take it away is another hash."""
    (tmp_path / "my_model.py").write_text(MY_MODEL, encoding="utf-8")
    without = answer_of(tmp_path, HASH)  # there to import, but registered by nobody
    install(tmp_path, "my-model", {}, {"mine": "my_model:Mine"})
    installed = answer_of(tmp_path, HASH)
    (tmp_path / "my_model.py").write_text(MY_MODEL + "#", encoding="utf-8")
    changed = answer_of(tmp_path, HASH)
    (tmp_path / "beside.py").write_text("x = 1\n", encoding="utf-8")
    assert answer_of(tmp_path, HASH) == changed
    shutil.rmtree(tmp_path / "my-model-1.0.dist-info")
    assert len({without, installed, changed}) == 3
    assert answer_of(tmp_path, HASH) == without


def test_the_code_hash_changes_with_the_registration(tmp_path: Path) -> None:
    """The same file under another name, or another class of it, is another model."""
    found = [
        answer_of(install(tmp_path / str(i), "m", {"my_model.py": MY_MODEL}, models), HASH)
        for i, models in enumerate(
            ({"mine": "my_model:Mine"}, {"ours": "my_model:Mine"}, {"mine": "my_model:Other"})
        )
    ]
    assert len(set(found)) == 3


def test_the_code_hash_is_the_same_wherever_a_model_is_installed(tmp_path: Path) -> None:
    """Centre and sites agree although their folders differ."""
    found = [
        answer_of(install(tmp_path / name, "m", {"m.py": MY_MODEL}, {"mine": "m:Mine"}), HASH)
        for name in ("here", "there")
    ]
    assert len(set(found)) == 1


def test_the_code_hash_covers_the_whole_package_of_a_model(tmp_path: Path) -> None:
    """A model may be spread over modules; each is part of what was consented to."""
    files = {
        "lab/__init__.py": "",
        "lab/models/__init__.py": "",
        "lab/models/mine.py": MY_MODEL,
        "lab/layers.py": "x = 1\n",
    }
    install(tmp_path, "lab", files, {"mine": "lab.models.mine:Mine"})
    found = {answer_of(tmp_path, HASH)}
    for path in files:
        with (tmp_path / path).open("a", encoding="utf-8") as file:
            file.write("#")
        found.add(answer_of(tmp_path, HASH))
    assert len(found) == 1 + len(files)


def test_the_code_hash_is_made_without_running_a_model(tmp_path: Path) -> None:
    """What is judged takes no part in the judgement, and PyTorch is not loaded for it."""
    files = {"lab/__init__.py": "raise SystemExit(3)\n", "lab/mine.py": MY_MODEL}
    install(tmp_path, "lab", files, {"mine": "lab.mine:Mine"})
    script = (
        f"{HASH}\nanswer = [name for name in ('lab', 'lab.mine', 'torch') if name in sys.modules]"
    )
    assert answer_of(tmp_path, script) == []


def blocks(language: str) -> list[str]:
    """Give the guide's blocks of code in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def block(first_line: str, language: str) -> str:
    """Give the guide's one block that starts with `first_line`."""
    (found,) = [text for text in blocks(language) if text.startswith(f"{first_line}\n")]
    return found


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the guide's own example, as its registration says."""
    project = tomllib.loads(block("# pyproject.toml", "toml"))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    return install(
        tmp_path_factory.mktemp("guide"),
        project["project"]["name"],
        {f"{module}.py": block(f"# {module}.py", "python")},
        project["project"]["entry-points"]["federated_maintenance.models"],
    )


def test_the_guides_example_can_be_named_by_an_experiment(guided: Path) -> None:
    """What it tells people to write is what builds the model."""
    script = f"""
import yaml
from core.models import build_model
spec = yaml.safe_load({block("# experiment.yaml", "yaml")!r})["model"]
model = build_model(spec, sensors=3, window_steps=12)
answer = {{name: list(tensor.shape) for name, tensor in model.get_parameters().items()}}
"""
    assert answer_of(guided, script)["hidden.weight"] == [16, 9]


def test_the_guides_example_keeps_the_contract(guided: Path) -> None:
    """The command that the guide gives judges the installed model, and finds no fault in it."""
    command = next(line for line in "".join(blocks("sh")).splitlines() if line.startswith("pytest"))
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "-p", "no:cacheprovider", "-q"],
        cwd=ROOT,
        env=with_path(guided),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 30


def test_the_guide_lists_every_option_with_its_range() -> None:
    """Default, least and most are those of the architectures."""
    row = r"^\| `(\w+)` \| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \|"
    listed = {tuple(found) for found in re.findall(row, GUIDE, re.MULTILINE)}
    assert listed == {
        (model.name, name, str(option.default), str(option.minimum), str(option.maximum))
        for model in describe_models()
        if model.name in MODELS
        for name, option in model.options.items()
    }
