"""
An HTTP/1.1 server on the event loop, and a transport for clients in the same process.

Open ``connection.py`` first: one connection, from bytes to answers. ``request.py`` has what an application sees.
"""
