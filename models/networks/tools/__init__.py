"""What the networks are written with."""
