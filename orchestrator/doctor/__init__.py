"""Whether a machine or a cluster can be trusted with training: nodes, storage, network, parity."""
