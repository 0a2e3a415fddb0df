"""
The traders' client: signed requests of the v1 API.

Open ``spot.py`` first: `SpotClient` and its async twin. ``core.py`` decides what is sent; ``signed.py`` is the
documents' class.
"""
