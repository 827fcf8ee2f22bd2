"""Checkpoints that commit: a folder either holds everything, with digests, or it is not there.

layout     names, the manifest, which checkpoints there are
shard      one rank's safetensors file, hashed while it is written
ranks      small agreements between ranks
zero3      a DeepSpeed ZeRO-3 engine's state as named slices, and back
store      the protocol: begin, save, load, retention
full       whole parameters from all shards, for the export
"""
