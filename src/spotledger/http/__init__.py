"""
Serve the signed API of traders and the operator API over HTTP.

Open ``serve.py`` first: it starts both listeners. ``wire.py`` has the one table from errors to answers.
"""
