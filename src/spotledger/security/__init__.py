"""
Check who is calling and what they may do: access keys, signatures, tokens, limits, replay, addresses.

Open ``gate.py`` first: the checks of a signed request, in order. ``tokens.py`` checks operator tokens.
"""
