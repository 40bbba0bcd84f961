"""Shards: archives that hold samples.  Which members and samples they have, and how these are read.

Archives: `tar` reads headers, `walk` finds the members of a tar with whatever ranges of it are at
hand, `policy` says what is refused; `index` is what was found, `indexstore` keeps it, `make` makes
the indices of many shards.  `inflate`, `stream` and `zips` read what is streamed or unpacked,
`archives` knows which is which.

Samples, by the rules of `headrace.members`: `table` says what identifies each shard, `samples`
makes the list of samples out of indices, `elsewhere` does so in a process of its own, `join` makes
that of several streams, and `writer` stores it; `ranges` and `pieces` are what samples are read by.
`grouping` makes samples out of the members of a shard that is streamed.
"""
