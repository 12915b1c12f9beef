"""Programs that mean harm."""

ATTACKS = {}
FORGERIES = {}
