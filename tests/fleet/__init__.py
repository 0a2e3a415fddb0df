"""A whole fleet as real processes: what it is made of, the load on it, and the bad days it has to stand."""
