"""What a model costs and is worth on this machine: speed, memory, energy and score of any number of targets."""
