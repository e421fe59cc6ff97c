"""The experiments, in the order of their importance: what a lab that is cut short has done is what stands first.

Each module is a `lab.lab.Experiment`; one that also has `figures` draws SVGs of what it found.
"""

from lab.experiments import (
    agreement,
    beyond,
    determinism,
    figures,
    fluctuation,
    incremental,
    optimizers,
    setup,
    sharpness,
    table2,
    table3,
)
from lab.lab import Experiment

ALL: tuple[Experiment, ...] = (
    setup,
    table2,
    table3,
    figures,
    fluctuation,
    determinism,
    incremental,
    optimizers,
    sharpness,
    beyond,
    agreement,
)
"""`agreement` comes last: it looks at the runs of all others."""
