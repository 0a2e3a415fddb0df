"""
The command line: ``spotledger`` and its commands.

Open ``main.py`` first: it lists the commands. ``connection.py`` connects them to a server or a data folder.
"""
