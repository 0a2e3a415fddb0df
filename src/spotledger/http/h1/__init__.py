"""
The HTTP/1.1 server on the event loop, and its stand-in within a process.

Open ``connection.py`` first: one connection, from bytes to answers. ``request.py`` has what an application is given.
"""
