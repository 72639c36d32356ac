"""Matting data sets in folders: their layouts, and clips made of them."""
