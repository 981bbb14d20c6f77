"""LUNAR beside refusing with a detector over spans, on a model that has learnt TOFU's authors; see `__main__`."""
