"""
An HTTP/1.1 server on the event loop, which knows nothing of ledgers, and a transport for clients in the same process.

Open ``connection.py`` first: one connection, from bytes to answers. ``request.py`` has what an application sees, and
README.md says what the server keeps and bounds.
"""
