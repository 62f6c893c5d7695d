"""Makes SWE-bench rows of ordinary packages: a source distribution, one changed expression, the tests that notice."""
