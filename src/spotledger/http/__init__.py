"""The two doors over HTTP: the public wire of traders and the operator API."""
