"""
What runs the service: its settings, opening its store, and assembling its parts.

Open ``runtime.py`` first; ``opening.py`` opens an embedded ledger, and ``fleet.py`` a node of a fleet.
"""
