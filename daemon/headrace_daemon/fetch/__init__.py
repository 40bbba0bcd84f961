"""How bytes are asked for: the memory budget and the bounded fetcher."""
