"""What was learnt: measurements of a dictionary at work."""
