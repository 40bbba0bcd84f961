"""``headrace demo``: a model trained through a daemon, with trainer and daemon killed on the way.

`run` is the whole story; each other module is one thing in it.
"""
