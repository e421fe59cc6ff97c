"""The journal: sealed chunks on the trainer's local disk, until somebody has acknowledged them.

Guarantees. A sealed chunk survives `kill -9` of the trainer at any instruction. Torn tails are cut and counted. The
disk used by a run is bounded. A full or broken disk stops journaling and not training; what could not be kept is
counted by reason (`lossguard.drops`). Chunk indices have no gaps. Nothing is deleted before it was acknowledged.

The format is specified in `lossguard.journal.segment` (bytes) and `lossguard.journal.layout` (folders).
"""
