"""One check of a GPU: are the numbers right, and how fast is it beside TRL?"""
