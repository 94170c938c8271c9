"""Seeds and code hashes: the same from the same, another from anything else."""

import importlib.util
from pathlib import Path

import pytest

from core import codehash
from core.jsontext import as_json
from core.seeds import derive_seed


def test_a_seed_is_made_again_from_its_facts() -> None:
    """The number itself is part of the promise: old runs can be repeated with new releases."""
    assert derive_seed(7, 0, "factory-1") == derive_seed(7, 0, "factory-1")
    assert derive_seed(7, 0, "factory-1") == 7893136660475044214


@pytest.mark.parametrize(
    "facts",
    [(8, 0, "a"), (7, 1, "a"), (7, 0, "b"), (0, 7, "a"), (7, 0), (70, "a"), (7, "0", "a"), ()],
    ids=str,
)
def test_other_facts_give_another_seed(facts: tuple[int | str, ...]) -> None:
    """Neither order, type nor the place of a boundary is lost."""
    assert derive_seed(*facts) != derive_seed(7, 0, "a")


def test_a_seed_fits_63_bits() -> None:
    """Generators of PyTorch and NumPy both take it."""
    seeds = [derive_seed(number) for number in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 1000


def hash_of(root: Path) -> str:
    """Give the code hash of the installation at `root`, as a fresh process would."""
    spec = importlib.util.spec_from_file_location("fresh_codehash", root / "core" / "codehash.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: str = module.installed_code_hash()
    return found


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """Give a small installation: one module each of `core` and `datasite`, and of two others."""
    for name in ("core/a.py", "datasite/data/b.py", "orchestrator/c.py", "tests/d.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("x = 1\n")
    code = Path(codehash.__file__).read_bytes()
    (tmp_path / "core" / "codehash.py").write_bytes(code)
    return tmp_path


@pytest.mark.parametrize("module", ["core/a.py", "datasite/data/b.py", "core/codehash.py"])
def test_the_code_hash_changes_with_one_byte_of_a_module(installation: Path, module: str) -> None:
    """A comment is enough: what is installed is what was consented to."""
    before = hash_of(installation)
    with (installation / module).open("a") as file:
        file.write("#")
    assert hash_of(installation) != before


def test_the_code_hash_changes_with_the_name_of_a_module(installation: Path) -> None:
    """Where code lies decides whether it runs."""
    before = hash_of(installation)
    (installation / "core" / "a.py").rename(installation / "core" / "z.py")
    assert hash_of(installation) != before


def test_the_code_hash_changes_when_code_moves_from_one_module_to_the_next(
    installation: Path,
) -> None:
    """The boundary between two files is part of what is hashed."""
    (installation / "core" / "b.py").write_text("")
    before = hash_of(installation)
    (installation / "core" / "a.py").write_text("")
    (installation / "core" / "b.py").write_text("x = 1\n")
    assert hash_of(installation) != before


def test_a_module_cannot_pass_for_two(installation: Path) -> None:
    """Text that looks like the boundary between two files is text."""
    (installation / "core" / "a.py").write_text("1\n")
    (installation / "core" / "b.py").write_text("2\n")
    apart = hash_of(installation)
    (installation / "core" / "b.py").unlink()
    for boundary in ("core/b.py\n", "core/b.py 2\n"):
        (installation / "core" / "a.py").write_text(f"1\n{boundary}2\n")
        assert hash_of(installation) != apart


@pytest.mark.parametrize("module", ["orchestrator/c.py", "tests/d.py", "core/notes.txt"])
def test_the_code_hash_is_that_of_the_training_code_alone(installation: Path, module: str) -> None:
    """A researcher's newer orchestrator does not void the plans of a site."""
    before = hash_of(installation)
    (installation / module).write_text("x = 2\n")
    assert hash_of(installation) == before


def test_json_has_null_where_it_has_no_number() -> None:
    """Other programs stop at NaN; everything else is as `json` writes it."""
    value = {"a": [1, float("nan")], "b": (float("inf"), 0.5, None, True), "c": "NaN"}
    assert as_json(value) == '{"a": [1, null], "b": [null, 0.5, null, true], "c": "NaN"}'
