"""The one typed source of truth: what a DPOJob may say, and the words that all parts use for it.

Nothing here does input or output. The operator, the trainer, the command line and the generated CRD all read these
types, so a default or a bound is written once.
"""
