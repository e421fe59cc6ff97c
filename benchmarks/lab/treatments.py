"""Makes the treatments of a configuration, as the product has them.

One that keeps statistics of its own lists their variables as `variables`; each run begins with their initial values.
"""

from importlib import import_module
from typing import Any

from lab.grids import MAKERS, Settings


def make(name: str, settings: Settings) -> tuple[Any, ...]:
    """The treatments of one configuration; none for `naive`.

    Raises:
        ValueError: an unknown name, or numbers that the treatment refuses.
    """
    if name == "naive":
        return ()
    if name not in MAKERS:
        raise ValueError(f"treatment: {name!r} is none of naive, {', '.join(MAKERS)}")
    module, maker = MAKERS[name]
    return (getattr(import_module(module), maker)(**dict(settings)),)
