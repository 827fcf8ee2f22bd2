"""Atomic checkpoints: a committed folder is complete and has digests.

layout, manifest      names on the volume; what a checkpoint holds, checked by types and bounds
loop_state            state of the training loop in a manifest
plain_files           files read without following links
slices                which elements of a parameter each rank's shard holds
shard                 one rank's safetensors file, hashed while it is written
engine_state          what a checkpoint needs from the training engine
writer                commit protocol: free space, shards, manifest, rename, retention
volume                messages for volume errors during a save
background, hostcopy  saves in a thread, from a copy of a rank's slices
loading, verification selecting the checkpoint to resume from: intact, matching, trusted
identity, trust       whether a checkpoint belongs to a job, and whether the job committed it
rng                   state of torch's random generators
store                 facade: fencing, saving, loading
full                  whole parameters from all shards, for the export
folder                what telemetry reports of a job's checkpoints
"""
