"""Proof: is the bundle what was trained? Each check a number with its limit; on the user's own rows."""
