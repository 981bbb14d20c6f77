"""One skill, every method: what each withholds, keeps, costs, and gives back to who rewords or trains."""
