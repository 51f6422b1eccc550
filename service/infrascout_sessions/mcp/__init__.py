"""The session tools for AI assistants, over the Model Context Protocol.

A client of the service like any other: it adds words for a model, and sizes that fit its context.
It needs the extra `mcp`.
"""
