"""Training a network: from the configuration to the files of results, and reading these back."""
