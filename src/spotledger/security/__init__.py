"""
Who is calling, and what they may do: access keys, signatures, operator tokens, limits, replay, addresses.

Open ``gate.py`` first: the checks of a signed request, in their order.
"""
