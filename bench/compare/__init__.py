"""Comparisons of methods: what to run, the rows that result, tables, pictures, and the page of results."""
