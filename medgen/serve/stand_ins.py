"""Stands in for packages that MONAI Label imports as it starts, and that no image task of ours uses.

They pin versions of numpy and torch that cannot be had beside ours, or weigh more than all the rest (itk: 1.5 GB, to
write masks). Whoever calls one is told so.

`install` is called before MONAI Label is imported, also in the processes that it starts: see `medgen.serve.server`.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any, NoReturn

# What MONAI Label takes from each, at import.
_TAKEN = {
    "pydicom_seg": (),
    "numpymaxflow": (),
    "girder_client": ("GirderClient",),
    "itk": (),
    "torchvision": (),
    "torchvision.utils": ("make_grid", "save_image"),
}


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the package would have
        if name.startswith("__"):
            raise AttributeError(name)
        return _refusing(f"{self.__name__}.{name}")


def install() -> None:
    """Puts a stand-in in the place of each package that cannot be imported."""
    for name, taken in _TAKEN.items():
        if name in sys.modules or _is_there(name):
            continue
        module = _StandIn(name)
        # A package without a file: MONAI, which asks whether it could read with itk, takes it for absent.
        module.__path__ = []
        for part in taken:
            setattr(module, part, _refusing(f"{name}.{part}"))
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _refusing(name: str) -> Any:  # noqa: ANN401 - a function, or what is called as a class
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"{name} is not installed beside medgen, which serves images: MONAI Label needs it for masks"
        )

    return refuse
