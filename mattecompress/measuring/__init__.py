"""How fast a program is, here or elsewhere, how near its mattes are to the truth, and what precisions cost them."""
