"""The fault matrix: what can break, and what must be true whatever breaks. Tests name the rows that they inject by number."""

from dataclasses import dataclass

INVARIANTS = {
    "A": "one live gang per job; a fenced older attempt can't commit",
    "B": "no orphan and no duplicate",
    "C": "training goes on exactly at the last committed checkpoint; none is lost",
    "D": "the objects at the end equal those of the run without a fault",
    "E": "it ends or goes on within a bound, with a condition and its reason; restarts are counted exactly",
    "F": "the volume stays unless the policy deletes it",
    "G": "losses after a restart equal those of the uninterrupted run",
}


@dataclass(frozen=True)
class Row:
    """One fault, and what must be true after it."""

    fault: str
    expected: str


ROWS: dict[int, Row] = {
    1: Row("The operator dies before or after any of its writes", "A–F"),
    2: Row("The API server is killed and comes back", "training goes on; D"),
    3: Row("A watch falls silent", "renewed within 75 s, or liveness fails"),
    4: Row("410 Gone, with a child deleted in the gap", "healed by the next pass over all jobs within 60 s"),
    5: Row("Watch events come twice or out of order", "no write more"),
    6: Row("An old list is replayed", "no newer object is deleted"),
    7: Row("A write is committed and its answer lost", "only the job's own object is taken over"),
    8: Row("429, 409, 500, a broken watch", "retried with a growing delay"),
    9: Row("etcd is down; an old snapshot of it is restored", "nothing is made up; C"),
    10: Row("The controller manager is down", "clean-up is completed later"),
    11: Row("Two operators; the leader is paused and goes on", "A, B"),
    12: Row("The operator is upgraded or rolled back in mid-run", "no pod restarts; older objects are read"),
    13: Row("No operator when a job is deleted, or the chart", "nothing is stuck"),
    14: Row(
        "A rank dies at start, rendezvous, loading, a step, a save, the export", "one counted restart of all; C, G"
    ),
    15: Row("A rank is killed for want of memory", "the reason is shown; restarts are bounded"),
    16: Row("Drain, eviction, preemption", "a last save; not counted"),
    17: Row("A node is lost", "A: no second writer; C"),
    18: Row("A kubelet restarts", "nothing restarts"),
    19: Row("A gang gets a part of its nodes; two jobs want the same", "given back in time; one proceeds"),
    20: Row("The image can't be pulled", "condition within 30 s; not counted; heals"),
    21: Row("No node fits", "the scheduler's message; heals"),
    22: Row("A Secret is missing", "waits; heals without a restart"),
    23: Row("A quota is exceeded midway", "no half gang is kept; few events; heals"),
    24: Row("A webhook denies or does not answer", "as with a quota"),
    25: Row("Somebody deletes a pod, Job, Service, ConfigMap, claim", "made anew; a lost claim fails the job"),
    26: Row("The claim stays pending", "condition; heals"),
    27: Row("The volume fills up in the middle of a save", "the older checkpoint stays whole"),
    28: Row("The volume becomes read-only", "stops with the reason"),
    29: Row("A shard is cut or a bit flipped", "found by its digest; the checkpoint before it is used"),
    30: Row("Killed at each step of a save, on every rank", "C"),
    31: Row("Power cut", "C"),
    32: Row("Another number of ranks", "training goes on from the checkpoint"),
    33: Row("Two jobs on one claim", "folders of their own"),
    34: Row("A rank hangs", "found in time; stacks are kept; all restart"),
    35: Row("Rank 0's reports stop while steps go on", "a warning, no restart"),
    36: Row("One rank is much slower", "a metric and an event, no restart"),
    37: Row("One rank is cut off the network", "as with a hang"),
    38: Row("The loss is NaN", "never committed; rolled back, then the job fails"),
    39: Row("Bad rows in the data", "counted; beyond the limit the job fails before step 1"),
    40: Row("It crashes again and again without a step", "stops after three restarts"),
    41: Row("A clock is wrong by an hour", "no time-out is affected"),
    42: Row("The spec is edited in mid-run", "refused, or applied"),
    43: Row("The job is deleted in mid-run, in each way", "gone within 60 s; F"),
    44: Row("Deleted and made again under the same name", "old pods are not adopted"),
    45: Row("Names of 63 and 253 characters, names that collide", "refused, or kept apart; B"),
    46: Row("The namespace is deleted", "it goes; retained data can be had back"),
    47: Row("A spec of more than a megabyte", "refused"),
    48: Row("Unicode, line breaks, NUL", "kept, or refused"),
}
