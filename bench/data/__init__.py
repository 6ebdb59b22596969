"""Data sets, and the streams of batches that training and evaluation read."""
