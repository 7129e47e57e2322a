"""The straightforward way of doing what this package does, as published systems do it, written plainly: what benchmarks compare with."""
