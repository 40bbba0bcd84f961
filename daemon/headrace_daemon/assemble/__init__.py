"""How batches lie in memory: slots and the layout of a payload."""
