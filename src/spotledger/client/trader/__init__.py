"""
The traders' client: signed requests of the v1 API.

Open ``spot.py`` first: `SpotClient` and its async twin. ``core.py`` decides what is sent. ``signed.py`` has the class
that the documents of the API show.
"""
