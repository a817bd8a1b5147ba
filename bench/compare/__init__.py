"""The comparison engine: plan, rows, tables, pictures, and the page of results made of them."""
