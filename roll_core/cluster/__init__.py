"""Where the roles of a run are: in this process, in processes beside it, or on the machines of a Ray cluster."""
