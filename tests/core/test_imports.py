"""What `core.imports` does to a process that imports much, each in a fresh one."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from core.imports import AbsentError, stand_ins, uncollected

STAND_IN = "no_such_package"


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    """Give back to the collector what a test froze, and take its stand-ins away."""
    yield
    gc.unfreeze()
    for name in [name for name in sys.modules if name.partition(".")[0] == STAND_IN]:
        del sys.modules[name]


def test_nothing_is_collected_until_the_block_ends() -> None:
    """Within it the collector is off; after it, it is on and does not walk what is there."""
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_the_collector_is_on_again_after_a_failure() -> None:
    """An import that fails leaves no process without a collector."""
    with pytest.raises(ModuleNotFoundError), uncollected():
        import_module("no_such_package_either")
    assert gc.isenabled()


def test_a_stand_in_can_be_imported_named_and_inherited_from() -> None:
    """What modules do with names while they are imported works: they are classes."""
    with stand_ins([STAND_IN]):
        thing = import_module(f"{STAND_IN}.deep.inside").Thing
    refined = type("Refined", (thing,), {})
    assert sys.modules[STAND_IN].deep.inside.Thing is thing
    assert issubclass(refined, BaseException)  # an `except` clause may name it


def test_a_stand_in_fails_loudly_when_it_is_used() -> None:
    """Calling it, taking anything of it, or importing more of it raises."""
    with stand_ins([STAND_IN]):
        package = import_module(STAND_IN)
    with pytest.raises(AbsentError, match=rf"{STAND_IN}\.connect is not loaded"):
        package.connect("somewhere")
    with pytest.raises(AttributeError):
        _ = package.errors.NotFound
    with pytest.raises(ModuleNotFoundError):
        import_module(f"{STAND_IN}.more")


def test_what_is_loaded_already_is_no_stand_in() -> None:
    """A process that does use a package keeps it whole."""
    with stand_ins(["json"]):
        assert import_module("json") is json
        assert import_module("json.tool").__file__


@pytest.mark.live
def test_a_site_loads_neither_plots_nor_clouds() -> None:
    """They are a fifth of what PySyft takes to start, and a site uses none of them."""
    unused = ("matplotlib", "kr8s", "docker", "boto3", "botocore", "azure")
    script = (
        "import sys, datasite.server\n"
        f"print([n for n in {unused!r} if getattr(sys.modules[n], '__file__', None)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
