"""The control plane: leases, placement over nodes, events and history, runs. Rare, durable, never on the data path."""
