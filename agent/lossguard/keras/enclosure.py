"""What stands around a model's step: it prepares the first one and hears of the end that Keras calls no callback for.

Guarantees. The step's own exception goes on as it came. Saved and restored models never see the enclosure: it stands
only between `on_train_begin` and the end of the attempt.
"""

from collections.abc import Callable
from typing import Any

from lossguard.guard import guarded
from lossguard.keras.backends import backend
from lossguard.wire.chunk import AttemptEnd

_BARE = "lossguard_bare"


def enclose(model: Any, ended: Callable[[AttemptEnd], None]) -> None:
    """Let `ended` hear of an exception that leaves the compiled step; nothing where there is no step yet."""
    bare = getattr(model, "train_function", None)
    if bare is None or hasattr(bare, _BARE):
        return

    untraced = True

    def train_function(*arguments: Any) -> Any:
        nonlocal untraced
        if untraced:
            untraced = False
            _make_state(model, *arguments)
        try:
            return bare(*arguments)
        except backend.END_OF_DATA:
            raise  # the end of the data
        except BaseException as error:
            ended(reason_of(type(error)))
            raise

    setattr(train_function, _BARE, bare)
    model.train_function = train_function


@guarded("enclose", None)
def _make_state(model: Any, data: Any, *_: Any) -> None:
    backend.make_state(model, data)


def leave(model: Any) -> None:
    """Give the bare step back."""
    bare = getattr(getattr(model, "train_function", None), _BARE, None)
    if bare is not None:
        model.train_function = bare


def reason_of(kind: type[BaseException] | None) -> AttemptEnd:
    """What an attempt ended by, from the exception that ended it."""
    if kind is None:
        return "finished"
    return "interrupted" if issubclass(kind, (KeyboardInterrupt, SystemExit, GeneratorExit)) else "failed"
