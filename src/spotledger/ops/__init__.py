"""
Run the service: read its settings, open its store, and join its parts.

Open ``runtime.py`` first: it joins the parts. ``opening.py`` opens the embedded store, ``fleet.py`` one on PostgreSQL.
"""
