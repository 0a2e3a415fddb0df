"""
Who may make which call: the policy, written down apart from the code that enforces it.

Open ``operator_rows.py`` first. The tests ``test_permissions_operator.py`` and ``test_permissions_public.py`` try every
cell against a running application; ``page.py`` makes docs/reference/permissions.md of the same rows.
"""
