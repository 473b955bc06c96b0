"""What the ops share. Tools import no op."""
