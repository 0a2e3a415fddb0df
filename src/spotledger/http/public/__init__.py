"""
The traders' listener: the signed v1 calls, and the few v4 calls that stock clients need.

Open ``app.py`` first: it answers one request. ``request.py`` reads it, ``bodies.py`` joins the body of a balance.
"""
