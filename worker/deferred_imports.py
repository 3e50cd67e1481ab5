"""Import a module when something of it is used, and not when it is named.

A library imports all of itself for whoever may want a part. A program that ends within seconds, and uses a
tenth of it, waits for the rest.
"""

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# What importing itself asks for and sets: none of it is a look inside.
OF_THE_PLACE = ("__path__", "__file__", "__cached__")
_RUNNING = threading.RLock()


def defer_imports(names: Sequence[str]) -> None:
    """Have these modules, which nobody has imported yet, run at the first look at what they hold.

    What lies inside a package can be imported while the package itself has not run.
    """
    sys.meta_path.insert(0, _Finder(frozenset(names)))


def is_deferred(name: str) -> bool:
    """Whether a module was imported, and has not run."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return isinstance(spec, ModuleSpec) and isinstance(spec.loader, _Later)


def run_deferred(name: str) -> bool:
    """Run a deferred module's code, for what it does beside what it holds; whether it had not run."""
    return is_deferred(name) and _run(sys.modules[name])


class _Deferred(ModuleType):
    """A module whose code has not run, or has put another module in its place."""

    def __getattr__(self, name: str) -> Any:
        """Python asks this for what the module does not hold."""
        if name not in OF_THE_PLACE:
            _run(self)
            if name in vars(self):
                return vars(self)[name]
            instead = sys.modules.get(self.__name__)
            if instead is not None and instead is not self:
                return getattr(instead, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Finder(MetaPathFinder):
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing yet."""


def _run(module: ModuleType) -> bool:
    with _RUNNING:
        spec = module.__spec__
        if spec is None or not isinstance(spec.loader, _Later):
            return False  # it runs, or has run
        loader = spec.loader.loader
        spec.loader = module.__loader__ = loader
        loader.exec_module(module)
        return True
