"""What remembers: the stores, and the folder that they live in."""
