"""Who trains the cells: this process, processes of this machine, or a cluster."""
