"""LUNAR as in the paper: the down projection of one layer is trained towards what the solve has in closed form."""
