"""Checkpoints in an object store, beside the volume: copied there during training, and fetched when the volume was lost.

place    the folder in the store: whose it is, and which checkpoints in it are whole
save     from the volume to the store, with the retention of the volume
restore  from the store to a new volume
run_files  metrics.jsonl, samples.jsonl and diagnosis.json, with both
phase    `python -m dpo_trainer mirror`: one copy, and what the operator reads of it

The folder has the layout of checkpoints/ on the volume (checkpoint/layout.py). manifest.json is written last and deleted first, so that without it
nothing counts as a checkpoint; it has the SHA-256 of every other file.
"""
