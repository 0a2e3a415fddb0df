"""
The service over HTTP: the traders' listener in ``public/`` and the operator's in ``operator/``.

Open ``serve.py`` first: it binds both and joins them to the ledger. ``h1/`` is the HTTP/1.1 server.
"""
