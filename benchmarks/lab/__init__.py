"""The lab: what the paper and the practitioner's report say, run again on two cores, with Lossguard watching.

`config` says what one training is, `train` runs it, `cache` keeps it, `pool` runs many; an experiment names the
configurations it needs and makes its section of docs/lab.md of their outcomes.
"""
