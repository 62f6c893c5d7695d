"""The names of the benchmarks, one a line. The demo is left out: it is a run of its own (`make demo`)."""

import pkgutil

import benchmarks

for module in pkgutil.iter_modules(benchmarks.__path__):
    if not module.ispkg and not module.name.startswith("_") and module.name != "demo":
        print(module.name)
