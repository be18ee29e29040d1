"""How a change of an example's weight moves the parameters along the training trajectory."""
