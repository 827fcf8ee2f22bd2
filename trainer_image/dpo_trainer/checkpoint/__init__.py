"""Checkpoints that commit: a folder either holds everything, with digests, or it is not there.

layout     names, the manifest, which checkpoints there are
shard      one rank's safetensors file, hashed while it is written
ranks      small agreements between ranks
zero3      a DeepSpeed ZeRO-3 engine's state as named slices, and back
writer     how a checkpoint becomes one: room, shards, manifest, rename, retention
hostcopy   a copy of a rank's slices, for saves in the background
background one piece of work at a time in a thread
store      begin, save, wait, load
full       whole parameters from all shards, for the export
"""
