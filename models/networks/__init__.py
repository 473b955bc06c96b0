"""The networks, a file for each family; every file here is found and imported, so that it may register."""
