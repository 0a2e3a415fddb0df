"""Who is calling, and may they: access keys, signatures, tokens, limits, replay, addresses."""
