"""An AIStore cluster as a source: its map, its listings, its objects.

The behaviour of the store is that of AIStore 5.0 on the wire: a proxy answers every request for an
object with a redirect to the target that owns it, and never moves a byte of it itself.
"""
