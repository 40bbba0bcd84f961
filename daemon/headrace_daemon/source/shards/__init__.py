"""Shards: archives that hold samples.  Which members they have, where these are, what they hold.

`tar` reads headers, `walk` finds the members of a tar with whatever ranges of it are at hand,
`index` is what was found, `indexstore` keeps it, `make` makes the indices of many shards;
`inflate`, `stream` and `zips` read the kinds of archives that have to be unpacked, `archives` knows
which is which.  Nothing here knows samples: that is `headrace.members`.
"""
