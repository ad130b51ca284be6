"""From short runs to long ones: the ladder of `hpo transfer`, the laws fitted to it, and predictions from them."""
