"""What is measured apart from training: costs, speed, memory, energy, and where networks look."""
