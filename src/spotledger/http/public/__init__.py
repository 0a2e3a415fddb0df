"""
The traders' listener: the signed v1 calls, and the few v4 calls that stock clients need.

Open ``app.py`` first: it answers one request. ``request.py`` reads it, ``answers.py`` makes what is sent back.
"""
