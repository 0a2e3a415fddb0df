"""
Damage at scale: change the bytes of a ledger's files in every way, and compare all it says with an undamaged twin.

``make flips`` runs it; open ``trial.py`` first. ``ledgers.py`` makes the ledgers, ``ways.py`` changes their bytes,
``questions.py`` asks for everything and books 300 further operations.
"""
