"""How fast a program is, here or elsewhere, and how near its mattes are to the truth."""
