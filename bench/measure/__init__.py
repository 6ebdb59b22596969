"""What is measured apart from training: cost, speed, memory, energy, where networks look."""
