"""Two-dimensional convolution, alone and with max pooling."""
