"""Scripts that compare this package with a reference in one run and print the ratio; ``results/`` keeps what they printed."""
