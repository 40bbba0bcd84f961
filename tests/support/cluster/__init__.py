"""A real AIStore cluster for tests and benchmarks: one proxy and three targets on loopback.

    aisnode = find_aisnode()  # None: there is none here
    with Cluster(aisnode) as cluster:
        cluster.create_bucket("train")
        cluster.put_many("train", [("a/1.jpg", b"...")])
        ...
        cluster.kill("ais-target-1")
        cluster.restart("ais-target-1")

All that this project knows of the program is that an ``aisnode`` may be on PATH.  Nothing is left
behind, neither processes nor files, however the process ends that has started the cluster.
"""

from .cluster import Cluster
from .layout import QUICK
from .machine import ClusterError, find_aisnode

__all__ = ["QUICK", "Cluster", "ClusterError", "find_aisnode"]
