"""What a run found, as tables: on the terminal and in Markdown."""
