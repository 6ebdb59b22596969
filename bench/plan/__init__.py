"""Grid files to cells: every default filled in, every mistake named."""
