"""A real Ray cluster of two nodes on this machine: prints its address; on a line, ends the second node."""

import sys

from ray.cluster_utils import Cluster

SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
    second = cluster.add_node(**SMALL)
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second)
        print("gone", flush=True)
    cluster.shutdown()
