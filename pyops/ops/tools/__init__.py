"""What several ops need: checks of arguments, windows, autograd. No tool imports an op."""
