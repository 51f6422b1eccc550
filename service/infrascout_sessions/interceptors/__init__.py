"""What holds for every RPC."""
