"""Networks that blocks are inserted into."""
