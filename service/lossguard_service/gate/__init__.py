"""The gate: whether one export may be served, decided from the training history of exactly this checkpoint.

Guarantees. `policy` and `decide` are pure. Everything but `pass` blocks, and nothing passes by absence: what is not
known makes the verdict `insufficient_data`. Superseded attempts do not count; the steps judged are the lineage of the
export. A verdict, once given, never changes.
"""
