"""One training engine for every method, on mmengine's Runner."""
