"""Task `tabular`: rows of CSV and parquet files, with classes or with a number to predict."""
