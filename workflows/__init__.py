"""The shipped workflows, and what builds them."""
