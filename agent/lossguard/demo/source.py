"""Where the demo's examples come from: a folder of real data if one is named, the generated stream otherwise."""

from pathlib import Path

from lossguard.demo import features, kuairand, stream
from lossguard.demo.features import Examples


def examples(folder: Path | None, seed: int) -> Examples:
    """The encoded interactions.

    Args:
        folder: of KuaiRand-Pure, in either of its forms; None generates a stream.
        seed: of the generated stream.

    Raises:
        DataError: the folder is not there or not what it should be.
    """
    return features.encode(kuairand.read(folder) if folder is not None else stream.generate(seed))
