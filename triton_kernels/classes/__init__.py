"""What normalises or judges scores of classes: softmax and its losses."""
