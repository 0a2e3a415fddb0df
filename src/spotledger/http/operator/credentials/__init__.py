"""
The operator API's calls about who may do what: access keys, operator tokens, and what is known of their use.

Open ``keys.py`` first, which makes and revokes access keys and tokens.
"""
