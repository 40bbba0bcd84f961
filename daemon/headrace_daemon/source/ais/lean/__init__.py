"""The lean wire: whole objects and their rests, asked of targets over plain HTTP.

Connections are kept and shared by all buckets, small requests are pipelined, and bodies are
received straight into the memory of their requests.

    LeanWire ─► Lane (one target: queue, connections) ─► Connection (answers in order) ─► Transfer
        ▲                                                      │
        └───────────── Round (what one reader waits for) ◄─────┘
"""
