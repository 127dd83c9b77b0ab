"""Can one see what an atom does? Ablations of sparse dictionaries and of LoRAs' directions, against known pictures."""
