"""A session of this very host: run for real, recorded, and read back as an auditor would.

A client like any other: it knows the contract, and of the server only how to start one.
"""
