"""How a process that imports thousands of modules is up soon, and stays small.

Neither touches what is imported. `datasite.server` and the trainer import within these.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Let no garbage be looked for while much is made that will stay.

    The collector walks all modules, classes and functions again and again while they are made, a
    third of the time that PySyft takes to import. What is there at the end is not walked later
    either: requests need not wait for that. Within another one, it changes nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class AbsentError(Exception):
    """Something of a module was used that is not loaded in this process.

    A stand-in for a class is a subclass, so that `except` clauses may name it.
    """


@contextlib.contextmanager
def stand_ins(packages: Sequence[str]) -> Iterator[None]:
    """Have an import of one of `packages` give an empty stand-in, unless it is loaded already.

    Whatever name is taken from a stand-in is a class, so that annotations, `except` clauses and
    base classes made of it work. To call one, or to take anything of it, raises `AbsentError` or
    `AttributeError`. The stand-ins stay when the block ends; parts of the packages that were not
    asked for within it cannot be imported after it.

    Args:
        packages: Top-level packages that this process has no use for.
    """
    finder = _Finder(frozenset(packages).difference(sys.modules))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _StandIn(ModuleType):
    """A module that has every name, each a class that cannot be used."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a class, or what it stands for
        if name.startswith("__"):  # what Python itself asks of modules
            raise AttributeError(name)
        place = f"{self.__name__}.{name}"

        def refuse(*_args: object, **_kwargs: object) -> NoReturn:
            message = f"{place} is not loaded in this process, which should have no use for it"
            raise AbsentError(message)

        made = type(name, (AbsentError,), {"__module__": self.__name__, "__new__": refuse})
        setattr(self, name, made)  # the same class each time
        return made


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - importlib's signature
        target: ModuleType | None = None,  # noqa: ARG002 - likewise
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self._packages:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""
