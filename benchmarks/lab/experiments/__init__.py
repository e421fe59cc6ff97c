"""The experiments, in the order of their importance: what a lab that is cut short has done is what stands first.

Each module is a `lab.lab.Experiment`.
"""

from lab.experiments import beyond, table2
from lab.lab import Experiment

ALL: tuple[Experiment, ...] = (table2, beyond)
