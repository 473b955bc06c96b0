"""What the cases of several ops share."""
