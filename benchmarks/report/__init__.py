"""What a run found: rows from raw results (``rows``), kept in CSV (``store``), shown as tables (``text``)."""
