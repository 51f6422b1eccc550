"""The services of the contract: parse, call, map."""
