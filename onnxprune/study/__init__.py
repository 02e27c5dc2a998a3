"""Studies of a model that change nothing: what criteria see in it, and what each group is worth."""
