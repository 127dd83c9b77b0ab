"""Does a sparse dictionary say what was asked and still look like what was taught? Against its peers, on unseen artwork."""
